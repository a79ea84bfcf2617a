// Movies on Express and pg, one process for each core.
const cluster = require('node:cluster');
const os = require('node:os');
const express = require('express');
const { Pool, types } = require('pg');

const columns = 'id, title, description';

function serve() {
    const env = process.env;
    types.setTypeParser(types.builtins.INT8, Number);
    const pool = new Pool({
        host: env.POSTGRES_HOST,
        port: Number(env.POSTGRES_PORT),
        user: env.POSTGRES_USER,
        password: env.POSTGRES_PASSWORD,
        database: env.POSTGRES_DB,
        max: Math.ceil(Number(env.POOL) / os.availableParallelism()),
    });
    // pg prepares a query with a name once for each connection.
    const run = (name, text, values) => pool.query({ name, text, values });

    const app = express();
    app.disable('x-powered-by');
    app.disable('etag');
    app.get('/health', (request, response) => response.json({ status: 'ok' }));
    app.get('/api/movies', async (request, response) => {
        const { after = 0, limit = null } = request.query;
        const text = `SELECT ${columns} FROM movies WHERE id > $1 ORDER BY id LIMIT $2`;
        response.json((await run('list', text, [after, limit])).rows);
    });
    app.get('/api/movies/:id', async (request, response) => {
        const text = `SELECT ${columns} FROM movies WHERE id = $1`;
        const { rows } = await run('find', text, [request.params.id]);
        rows.length ? response.json(rows[0]) : response.sendStatus(404);
    });
    app.post('/api/movies', express.json(), async (request, response) => {
        const { title, description } = request.body ?? {};
        const text = (value) => typeof value === 'string' && value.trim() !== '';
        if (!text(title) || !text(description) || title.length > 255) {
            return response.sendStatus(400);
        }
        const insert = 'INSERT INTO movies (title, description) VALUES ($1, $2) RETURNING id';
        const { rows } = await run('create', insert, [title, description]);
        response.status(201).json({ id: rows[0].id, title, description });
    });
    app.listen(Number(env.PORT), '127.0.0.1');
}

if (cluster.isPrimary) {
    for (let i = 0; i < os.availableParallelism(); i++) cluster.fork();
} else {
    serve();
}
