//! Movies on axum, tokio-postgres and deadpool: the usual asynchronous way in Rust.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use deadpool_postgres::{Config, Pool, PoolConfig, Runtime};
use peers::{number, serve, setting};
use serde::{Deserialize, Serialize};
use tokio_postgres::{NoTls, Row};

#[derive(Serialize)]
struct Movie {
    id: i64,
    title: String,
    description: String,
}

impl From<Row> for Movie {
    fn from(row: Row) -> Self {
        Self {
            id: row.get(0),
            title: row.get(1),
            description: row.get(2),
        }
    }
}

#[derive(Deserialize)]
struct NewMovie {
    title: String,
    description: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    after: i64,
    limit: Option<i64>,
}

/// Any error of the database.
struct Failure;

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        eprintln!("{error}");
        Self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

async fn list(
    State(pool): State<Pool>,
    Query(page): Query<Page>,
) -> Result<Json<Vec<Movie>>, Failure> {
    let client = pool.get().await?;
    let statement = client
        .prepare_cached(
            "SELECT id, title, description FROM movies WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .await?;
    let rows = client
        .query(&statement, &[&page.after, &page.limit])
        .await?;
    Ok(Json(rows.into_iter().map(Movie::from).collect()))
}

async fn find(State(pool): State<Pool>, Path(id): Path<i64>) -> Result<Response, Failure> {
    let client = pool.get().await?;
    let statement = client
        .prepare_cached("SELECT id, title, description FROM movies WHERE id = $1")
        .await?;
    Ok(match client.query_opt(&statement, &[&id]).await? {
        Some(row) => Json(Movie::from(row)).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

async fn create(
    State(pool): State<Pool>,
    Json(new_movie): Json<NewMovie>,
) -> Result<Response, Failure> {
    let NewMovie { title, description } = new_movie;
    if title.trim().is_empty() || title.chars().count() > 255 || description.trim().is_empty() {
        return Ok(StatusCode::BAD_REQUEST.into_response());
    }
    let client = pool.get().await?;
    let statement = client
        .prepare_cached("INSERT INTO movies (title, description) VALUES ($1, $2) RETURNING id")
        .await?;
    let id = client
        .query_one(&statement, &[&title, &description])
        .await?
        .get(0);
    Ok((
        StatusCode::CREATED,
        Json(Movie {
            id,
            title,
            description,
        }),
    )
        .into_response())
}

async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok" }))
}

#[tokio::main]
async fn main() {
    let mut config = Config::new();
    config.host = Some(setting("POSTGRES_HOST"));
    config.port = Some(setting("POSTGRES_PORT").parse().expect("a port"));
    config.user = Some(setting("POSTGRES_USER"));
    config.password = Some(setting("POSTGRES_PASSWORD"));
    config.dbname = Some(setting("POSTGRES_DB"));
    config.pool = Some(PoolConfig::new(number("POOL")));
    let pool = config
        .create_pool(Some(Runtime::Tokio1), NoTls)
        .expect("a pool");
    let router = Router::new()
        .route("/api/movies", get(list).post(create))
        .route("/api/movies/{id}", get(find))
        .route("/health", get(health))
        .with_state(pool);
    serve(router).await;
}
