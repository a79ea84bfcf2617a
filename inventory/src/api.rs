//! Movies over HTTP.

use common::http::{
    HandlerResult, Page, Problem, Request, Response, Route, Verb, entity_tag_of, is_conditional,
    json_if_changed, require_no_tag, require_unchanged,
};
use serde_json::json;

use crate::creators::Creators;
use crate::movie::{Movie, MovieChanges, MovieFields, NewMovie, RuleBroken};
use crate::store::{ListedMovie, MovieStore};

/// What a worker has.
pub(crate) struct Movies {
    pub(crate) store: MovieStore,
    pub(crate) creators: Creators,
}

pub(crate) const ROUTES: &[Route<Movies>] = &[
    (Verb::Get, "/api/movies", list_movies),
    (Verb::Post, "/api/movies", create_movie),
    (Verb::Delete, "/api/movies", delete_all_movies),
    (Verb::Get, "/api/movies/:id", get_movie),
    (Verb::Put, "/api/movies/:id", change_movie),
    (Verb::Delete, "/api/movies/:id", delete_movie),
];

fn list_movies<'a>(movies: &'a mut Movies, request: &Request) -> HandlerResult<'a> {
    let page = Page::from_query(request)?;
    let part = request.query("title")?.unwrap_or_default();
    if part.contains('\0') {
        return Err(Problem::bad_request("title must not contain NUL"));
    }
    if part.is_empty() {
        page.respond(
            movies.store.list(page.with_one_more())?,
            ListedMovie::id,
            request,
        )
    } else {
        page.respond(
            movies.store.search(&part, page.with_one_more())?,
            ListedMovie::id,
            request,
        )
    }
}

fn create_movie<'a>(movies: &'a mut Movies, request: &Request) -> HandlerResult<'a> {
    let new_movie = NewMovie::try_from(request.json_object::<MovieFields>()?)?;
    let creators = movies.creators.clone();
    Ok(Response::later(move |client| {
        creators.create(new_movie, client);
    }))
}

fn delete_all_movies<'a>(movies: &'a mut Movies, request: &Request) -> HandlerResult<'a> {
    require_no_tag(request)?;
    let deleted = movies.store.delete_all()?;
    let answer = json!({ "message": "All movies have been deleted", "deleted": deleted });
    Ok(Response::json(200, &answer))
}

fn get_movie<'a>(movies: &'a mut Movies, request: &Request) -> HandlerResult<'a> {
    let movie = movies
        .store
        .find(movie_id(request)?)?
        .ok_or_else(|| no_such_movie(request))?;
    Ok(json_if_changed(request, &movie))
}

fn change_movie<'a>(movies: &'a mut Movies, request: &Request) -> HandlerResult<'a> {
    let id = movie_id(request)?;
    let changes = MovieChanges::try_from(request.json_object::<MovieFields>()?)?;
    let result = if is_conditional(request) {
        let check = |movie: &Movie| require_unchanged(request, &entity_tag_of(movie));
        movies.store.change_if(id, &changes, check)?.transpose()?
    } else {
        movies.store.change(id, &changes)?
    };
    let movie = result.ok_or_else(|| no_such_movie(request))?;
    Ok(Response::json(200, &movie).with_header("etag", entity_tag_of(&movie)))
}

fn delete_movie<'a>(movies: &'a mut Movies, request: &Request) -> HandlerResult<'a> {
    let id = movie_id(request)?;
    let deleted = if is_conditional(request) {
        let check = |movie: &Movie| require_unchanged(request, &entity_tag_of(movie));
        movies.store.delete_if(id, check)?.transpose()?.is_some()
    } else {
        movies.store.delete(id)?
    };
    if !deleted {
        return Err(no_such_movie(request));
    }
    let answer = json!({ "message": format!("Movie with id {id} has been deleted"), "id": id });
    Ok(Response::json(200, &answer))
}

/// An id that is no number, or too large for one, is an id that no movie has.
fn movie_id(request: &Request) -> Result<i64, Problem> {
    request.id_param("id").ok_or_else(|| no_such_movie(request))
}

fn no_such_movie(request: &Request) -> Problem {
    Problem::not_found(format!("there is no movie with id {}", request.param("id")))
}

impl From<RuleBroken> for Problem {
    fn from(RuleBroken(rule): RuleBroken) -> Self {
        Problem::bad_request(rule)
    }
}
