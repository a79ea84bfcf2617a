//! Movies over HTTP.

use std::collections::HashMap;

use common::db::{ChangeError, DbError};
use common::http::Handler;
use common::http::{
    Answers, Batch, HandlerResult, Head, Method, Page, Problem, Request, Response, Route, Verb,
    entity_tag_of, is_conditional, json_if_changed, require_no_tag, require_unchanged, whole_list,
};
use serde_json::json;

use crate::movie::{Movie, MovieChanges, MovieFields, NewMovie, RuleViolation};
use crate::store::{MovieRow, MovieStore};

pub(crate) const ROUTES: &[Route<MovieStore>] = &[
    (Verb::Get, "/api/movies", Handler::Batch(&LIST_MOVIES)),
    (Verb::Post, "/api/movies", Handler::Batch(&CREATE_MOVIES)),
    (Verb::Delete, "/api/movies", Handler::One(delete_all_movies)),
    (Verb::Get, "/api/movies/:id", Handler::Batch(&GET_MOVIES)),
    (Verb::Put, "/api/movies/:id", Handler::One(change_movie)),
    (Verb::Delete, "/api/movies/:id", Handler::One(delete_movie)),
];

const LIST_MOVIES: Batch<MovieStore> = Batch {
    slots: 2,
    requests_max: 16,
    filter: is_short_page,
    answer: list_pages,
    one: list_movies,
};

/// Creates that wait share one commit (group commit). While one slot waits for the disk, further creates queue
/// for the other slot, which would have to wait in any case, since movies are created in turn.
const CREATE_MOVIES: Batch<MovieStore> = Batch {
    slots: 2,
    requests_max: 256,
    filter: |_| true,
    answer: create_movies,
    one: create_movie,
};

const GET_MOVIES: Batch<MovieStore> = Batch {
    slots: 2,
    requests_max: 64,
    filter: |_| true,
    answer: get_movies,
    one: get_movie,
};

/// Checks that the query has only parameters that its path allows.
pub(crate) fn check_query(head: &Head) -> Result<(), Problem> {
    let is_list =
        head.route() == "/api/movies" && matches!(head.method, Method::GET | Method::HEAD);
    head.require_query_of(if is_list {
        &["title", "limit", "after"]
    } else {
        &[]
    })
}

/// Whether this is a short page of all movies; one statement reads several of these.
fn is_short_page(request: &Head) -> bool {
    let page = Page::from_query(request);
    let short = page.is_ok_and(|page| page.limit.is_some_and(|limit| limit <= 100));
    short && request.query("title") == Ok(None)
}

fn list_pages(movies: &mut MovieStore, requests: &[Request]) -> Answers {
    let pages: Vec<_> = requests
        .iter()
        .flat_map(|request| Page::from_query(request))
        .collect();
    let lists = match movies.pages(&pages) {
        Ok(lists) => lists,
        Err(error) => {
            return requests
                .iter()
                .map(|_| Some(Err(error.clone().into())))
                .collect();
        }
    };
    let answer = |((request, page), listed): ((&Request, &Page), Vec<MovieRow>)| {
        // A page with long descriptions is streamed.
        let whole = listed.iter().all(MovieRow::is_complete);
        whole.then(|| {
            page.respond(listed, MovieRow::id, request, |listed| {
                Ok(json_if_changed(request, &listed))
            })
        })
    };
    requests.iter().zip(&pages).zip(lists).map(answer).collect()
}

fn list_movies<'a>(movies: &'a mut MovieStore, request: &Request) -> HandlerResult<'a> {
    let page = Page::from_query(request)?;
    let part = request.query("title")?.unwrap_or_default();
    if part.contains('\0') {
        return Err(Problem::bad_request("title must not contain NUL"));
    }
    if page.limit.is_none() {
        return whole_list(request, movies.all(&part, page.after)?);
    }
    let listed = if part.is_empty() {
        movies.pages(&[page])?.pop().unwrap_or_default()
    } else {
        movies.search(&part, page)?
    };
    page.respond(listed, MovieRow::id, request, |listed| {
        if listed.iter().all(MovieRow::is_complete) {
            Ok(json_if_changed(request, &listed))
        } else {
            whole_list(request, movies.complete(listed))
        }
    })
}

fn create_movies(movies: &mut MovieStore, requests: &[Request]) -> Answers {
    let new_movies = requests.iter().map(|request| {
        require_no_tag(request)?;
        let fields = request.json_object::<MovieFields<'_>>()?;
        Ok(NewMovie::try_from(fields)?)
    });
    let new_movies: Vec<Result<NewMovie, Problem>> = new_movies.collect();
    let valid: Vec<&NewMovie> = new_movies.iter().flatten().collect();
    let mut ids = create_all(movies, &valid).into_iter();
    let answer = |new_movie: Result<NewMovie, Problem>| {
        let new_movie = new_movie?;
        let id = ids
            .next()
            .ok_or_else(|| Problem::internal("no id came back"))?
            .map_err(|error| {
                not_made(
                    error,
                    "whether the movie was created is not known; look for it before you send it \
                     again, which may create it twice",
                )
            })?;
        let movie = new_movie.with_id(id);
        Ok(Response::json(201, &movie)
            .with_header("location", format!("/api/movies/{id}"))
            .with_header("etag", entity_tag_of(&movie)))
    };
    new_movies.into_iter().map(answer).map(Some).collect()
}

fn create_movie<'a>(movies: &'a mut MovieStore, request: &Request) -> HandlerResult<'a> {
    let answer = create_movies(movies, std::slice::from_ref(request))
        .pop()
        .flatten();
    answer.unwrap_or_else(|| Err(Problem::internal("no answer came back")))
}

/// Creates movies and returns the id of each. If PostgreSQL refuses one, they are created one by one.
fn create_all(movies: &mut MovieStore, new_movies: &[&NewMovie]) -> Vec<Result<i64, ChangeError>> {
    match movies.create(new_movies) {
        Ok(ids) => ids.into_iter().map(Ok).collect(),
        Err(ChangeError::NotMade(
            DbError::BadData(_) | DbError::Unencodable(_) | DbError::Violated(_),
        )) if new_movies.len() > 1 => new_movies
            .iter()
            .flat_map(|new_movie| create_all(movies, &[new_movie]))
            .collect(),
        Err(error) => vec![Err(error); new_movies.len()],
    }
}

fn delete_all_movies<'a>(movies: &'a mut MovieStore, request: &Request) -> HandlerResult<'a> {
    require_no_tag(request)?;
    let deleted = movies.delete_all().map_err(|error| {
        not_made(
            error,
            "whether the movies were deleted is not known; a repeat is safe",
        )
    })?;
    let answer = json!({ "message": "All movies have been deleted", "deleted": deleted });
    Ok(Response::json(200, &answer))
}

fn get_movies(movies: &mut MovieStore, requests: &[Request]) -> Answers {
    let ids: Vec<i64> = requests.iter().flat_map(movie_id).collect();
    let found = movies.find_listed(&ids).map(|movies| {
        let by_id = movies.into_iter().map(|movie| (movie.id(), movie));
        by_id.collect::<HashMap<_, _>>()
    });
    let answer = |request: &Request| {
        let id = movie_id(request)?;
        let found = found.as_ref().map_err(DbError::clone)?;
        let movie = found.get(&id).ok_or_else(|| no_such_movie(request))?;
        // Movies with long descriptions are read one by one, to limit the memory.
        let whole = movie.is_complete();
        Ok(whole.then(|| json_if_changed(request, movie)))
    };
    requests.iter().map(answer).map(Result::transpose).collect()
}

fn get_movie<'a>(movies: &'a mut MovieStore, request: &Request) -> HandlerResult<'a> {
    let movie = movies
        .find(movie_id(request)?)?
        .ok_or_else(|| no_such_movie(request))?;
    Ok(json_if_changed(request, &movie))
}

fn change_movie<'a>(movies: &'a mut MovieStore, request: &Request) -> HandlerResult<'a> {
    let id = movie_id(request)?;
    let changes = MovieChanges::try_from(request.json_object::<MovieFields<'_>>()?)?;
    let result = if is_conditional(request) {
        let check = |movie: &Movie| require_unchanged(request, &entity_tag_of(movie));
        movies.change_if(id, &changes, check)
    } else {
        movies.change(id, &changes).map(|movie| movie.map(Ok))
    };
    let result = result.map_err(|error| {
        not_made(
            error,
            "whether the movie was changed is not known; a repeat is safe; if it is answered 412 because \
             of If-Match, read the movie",
        )
    })?;
    let movie = result.transpose()?.ok_or_else(|| no_such_movie(request))?;
    Ok(Response::json(200, &movie).with_header("etag", entity_tag_of(&movie)))
}

fn delete_movie<'a>(movies: &'a mut MovieStore, request: &Request) -> HandlerResult<'a> {
    let id = movie_id(request)?;
    let deleted = if is_conditional(request) {
        let check = |movie: &Movie| require_unchanged(request, &entity_tag_of(movie));
        movies.delete_if(id, check)
    } else {
        movies.delete(id).map(|deleted| deleted.then_some(Ok(())))
    };
    let deleted = deleted.map_err(|error| {
        not_made(
            error,
            "whether the movie was deleted is not known; a repeat is safe, and is answered 404 if it was",
        )
    })?;
    if deleted.transpose()?.is_none() {
        return Err(no_such_movie(request));
    }
    let answer = json!({ "message": format!("Movie with id {id} has been deleted"), "id": id });
    Ok(Response::json(200, &answer))
}

/// The problem of a change that was not confirmed; `unknown` is its detail if the change may have been made.
fn not_made(error: ChangeError, unknown: &'static str) -> Problem {
    match error {
        ChangeError::NotMade(error) => error.into(),
        ChangeError::Unknown(error) => Problem::unavailable(unknown, error),
    }
}

/// The id in the path. An id that is not a number or is out of range belongs to no movie.
fn movie_id(request: &Request) -> Result<i64, Problem> {
    request.id_param("id").ok_or_else(|| no_such_movie(request))
}

fn no_such_movie(request: &Request) -> Problem {
    Problem::not_found(format!("there is no movie with id {}", request.param("id")))
}

impl From<RuleViolation> for Problem {
    fn from(RuleViolation(rule): RuleViolation) -> Self {
        Problem::bad_request(rule)
    }
}
