// The running platform of setup/local.sh, and a gateway of a test's own before it.
'use strict';

const { execFile, spawn } = require('node:child_process');
const { createHash } = require('node:crypto');
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { promisify } = require('node:util');

const REPOSITORY = join(__dirname, '..', '..');
const { GATEWAY_URL, GATEWAY_PROGRAM, LOCAL_DIR, RABBITMQ_LOGIN, RABBITMQ_QUEUE, RABBITMQ_URL } = process.env;

// The test reads the line with the address, whatever LOG_FORMAT and RUST_LOG the platform has.
const LOG = { RUST_LOG: 'info', LOG_FORMAT: 'logfmt' };

/** Runs setup/local.sh with the platform's folder. */
function local(...words) {
  return promisify(execFile)(join(REPOSITORY, 'setup', 'local.sh'), words);
}

async function ask(method, path, json) {
  const response = await fetch(GATEWAY_URL + path, {
    method,
    headers: json && { 'content-type': 'application/json' },
    body: json && JSON.stringify(json),
  });
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
  return response.json();
}

/** Publishes a message past the gateway, as a user of RabbitMQ's page can. */
async function publish(payload, properties = {}) {
  const response = await fetch(`${RABBITMQ_URL}/api/exchanges/%2F/amq.default/publish`, {
    method: 'POST',
    headers: { authorization: `Basic ${Buffer.from(RABBITMQ_LOGIN).toString('base64')}` },
    body: JSON.stringify({ properties, routing_key: RABBITMQ_QUEUE, payload, payload_encoding: 'string' }),
  });
  if (!response.ok || !(await response.json()).routed) throw new Error(`RabbitMQ did not take it: ${response.status}`);
}

/** Waits for a fact, and returns it. */
async function eventually(what, fact) {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const value = await fact();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 100));
  }
}

/** Starts a second gateway, on a port that the system chooses or on `port`, with settings of its own. */
async function startGateway(settings = {}, port = 0) {
  const program = spawn(GATEWAY_PROGRAM, {
    cwd: tmpdir(),
    env: { ENV_FILE: join(LOCAL_DIR, 'settings.env'), ...LOG, API_GATEWAY_PORT: String(port), ...settings },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let log = '';
  const ended = new Promise((done) => program.once('exit', done));
  program.stderr.on('data', (text) => { log += text; });
  const address = await eventually('a gateway listens', () => {
    if (program.exitCode !== null) throw new Error(`the gateway ended: ${log}`);
    return /msg=listening address=([\d.]+:\d+)/.exec(log)?.[1];
  });
  const stop = async () => {
    program.kill('SIGTERM');
    await ended;
  };
  return { url: `http://${address}/`, port: Number(address.split(':')[1]), stop };
}

/** Starts a gateway that requires keys, given as name: [key, role]. */
async function startGatewayWithKeys(keys) {
  const folder = mkdtempSync(join(tmpdir(), 'crud-master-keys-'));
  const file = join(folder, 'keys');
  const lines = Object.entries(keys).map(([name, [key, role]]) => `${name}:${createHash('sha256').update(key).digest('hex')}:${role}\n`);
  writeFileSync(file, lines.join(''));
  const gateway = await startGateway({ API_KEYS_FILE: file });
  rmSync(folder, { recursive: true });
  return gateway;
}

module.exports = { url: `${GATEWAY_URL}/`, local, ask, publish, eventually, startGateway, startGatewayWithKeys };
