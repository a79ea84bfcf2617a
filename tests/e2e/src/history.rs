//! The requests of clients for one movie with their answers, and the check whether the movie is linearizable: whether
//! the answers are those of the requests one after the other, each at one moment between its begin and its end.
//!
//! A change whose outcome is not known took effect at any time after its begin, or never. Therefore the search for an
//! order remembers what it has tried: otherwise it would try each order of each selection of the unknown changes.

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History as Actions};
use todc_utils::specifications::Specification;

/// The content of a movie. Each title and each description of a history is written once, so a number identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MovieContent {
    /// The number of the title.
    pub title: u64,
    /// The number of the description.
    pub description: u64,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovieRequest {
    /// The creation, which is the first request of each history, since its answer has the id.
    Create(MovieContent),
    /// A read of the movie by its id, or of a page of the list.
    Read,
    /// A change of one field or both.
    Change {
        /// The new title.
        title: Option<u64>,
        /// The new description.
        description: Option<u64>,
        /// The content that an `If-Match` requires.
        only_if: Option<MovieContent>,
    },
    /// The deletion of the movie.
    Delete {
        /// The content that an `If-Match` requires.
        only_if: Option<MovieContent>,
    },
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovieResponse {
    /// The content of the movie.
    Movie(MovieContent),
    /// The movie was deleted.
    Deleted,
    /// Status 404.
    NoSuchMovie,
    /// Status 412.
    PreconditionFailed,
    /// No answer, or a status 5xx: the request was carried out at some time after its begin, or never.
    Unknown,
}

/// A request with its answer.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// The request.
    pub asked: MovieRequest,
    /// The answer.
    pub answered: MovieResponse,
    /// Its begin and its end, on a clock whose readings all differ.
    pub lasted: (u64, u64),
}

impl MovieRequest {
    /// The answer to the request, and the movie after it.
    fn carried_out(self, movie: Option<MovieContent>) -> (MovieResponse, Option<MovieContent>) {
        let only_if = match self {
            Self::Create(content) => return (MovieResponse::Movie(content), Some(content)),
            Self::Read => None,
            Self::Change { only_if, .. } | Self::Delete { only_if } => only_if,
        };
        let Some(is) = movie else {
            return (MovieResponse::NoSuchMovie, None);
        };
        if only_if.is_some_and(|wanted| wanted != is) {
            return (MovieResponse::PreconditionFailed, movie);
        }
        match self {
            Self::Change {
                title, description, ..
            } => {
                let changed = MovieContent {
                    title: title.unwrap_or(is.title),
                    description: description.unwrap_or(is.description),
                };
                (MovieResponse::Movie(changed), Some(changed))
            }
            Self::Delete { .. } => (MovieResponse::Deleted, None),
            Self::Create(_) | Self::Read => (MovieResponse::Movie(is), movie),
        }
    }
}

struct OneMovie;

impl Specification for OneMovie {
    type State = Option<MovieContent>;
    type Operation = Operation;

    fn init() -> Self::State {
        None
    }

    fn apply(operation: &Operation, movie: &Self::State) -> (bool, Self::State) {
        let (answer, movie) = operation.asked.carried_out(*movie);
        let explained = [answer, MovieResponse::Unknown].contains(&operation.answered);
        (explained, movie)
    }
}

/// Whether there is an order of these requests for one movie that explains all answers.
#[must_use]
pub fn is_linearizable(operations: &[Operation]) -> bool {
    // Most requests of unknown outcome have left no trace; without them there is little to search.
    let traced: Vec<_> = operations
        .iter()
        .filter(|operation| {
            operation.answered != MovieResponse::Unknown || leaves_traces(operation, operations)
        })
        .copied()
        .collect();
    has_order(&traced) || has_order(operations)
}

/// Whether an answer shows a content that this request may have written.
fn leaves_traces(operation: &Operation, operations: &[Operation]) -> bool {
    let MovieRequest::Change {
        title, description, ..
    } = operation.asked
    else {
        return true;
    };
    operations.iter().any(|other| {
        matches!(other.answered, MovieResponse::Movie(is)
            if title == Some(is.title) || description == Some(is.description))
    })
}

fn has_order(operations: &[Operation]) -> bool {
    let mut actions = Vec::with_capacity(operations.len() * 2);
    for (number, operation) in operations.iter().enumerate() {
        let (begun, ended) = operation.lasted;
        actions.push((begun, number, Action::Call(*operation)));
        // A request of unknown outcome may also have been carried out after all others, where no answer shows it.
        let unknown = operation.answered == MovieResponse::Unknown;
        let ended = if unknown { u64::MAX } else { ended };
        actions.push((ended, number, Action::Response(*operation)));
    }
    actions.sort_by_key(|(time, _, _)| *time);
    let actions = actions
        .into_iter()
        .map(|(_, number, action)| (number, action));
    WGLChecker::<OneMovie>::is_linearizable(Actions::from_actions(actions.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: MovieContent = MovieContent {
        title: 1,
        description: 1,
    };
    const SECOND: MovieContent = MovieContent {
        title: 2,
        description: 1,
    };

    fn operation(asked: MovieRequest, answered: MovieResponse, lasted: (u64, u64)) -> Operation {
        Operation {
            asked,
            answered,
            lasted,
        }
    }

    fn created() -> Operation {
        operation(
            MovieRequest::Create(FIRST),
            MovieResponse::Movie(FIRST),
            (0, 1),
        )
    }

    fn read(answered: MovieResponse, lasted: (u64, u64)) -> Operation {
        operation(MovieRequest::Read, answered, lasted)
    }

    fn retitled(
        only_if: Option<MovieContent>,
        answered: MovieResponse,
        lasted: (u64, u64),
    ) -> Operation {
        let change = MovieRequest::Change {
            title: Some(SECOND.title),
            description: None,
            only_if,
        };
        operation(change, answered, lasted)
    }

    #[test]
    fn a_read_during_a_change_may_see_either() {
        for seen in [FIRST, SECOND] {
            let changed = retitled(None, MovieResponse::Movie(SECOND), (2, 5));

            assert!(is_linearizable(&[
                created(),
                changed,
                read(MovieResponse::Movie(seen), (3, 4)),
            ]));
        }
    }

    #[test]
    fn a_read_after_a_change_must_not_be_stale() {
        let changed = retitled(None, MovieResponse::Movie(SECOND), (2, 3));

        let seen = |seen| [created(), changed, read(MovieResponse::Movie(seen), (4, 5))];

        assert!(is_linearizable(&seen(SECOND)));
        assert!(!is_linearizable(&seen(FIRST)));
    }

    #[test]
    fn what_one_reader_has_seen_a_later_one_sees_too_while_the_change_still_runs() {
        let changed = retitled(None, MovieResponse::Movie(SECOND), (2, 9));
        let seen = |content, lasted| read(MovieResponse::Movie(content), lasted);

        assert!(!is_linearizable(&[
            created(),
            changed,
            seen(SECOND, (3, 4)),
            seen(FIRST, (5, 6)),
        ]));
    }

    #[test]
    fn a_change_of_unknown_outcome_may_show_late_or_never_and_stays_once_it_has_shown() {
        let unknown = retitled(None, MovieResponse::Unknown, (2, 3));
        let seen = |content, lasted| read(MovieResponse::Movie(content), lasted);
        let reads = |contents: [MovieContent; 3]| {
            let times = [(4, 5), (6, 7), (8, 9)];
            let reads = contents.into_iter().zip(times);
            let reads = reads.map(|(content, lasted)| seen(content, lasted));
            [created(), unknown]
                .into_iter()
                .chain(reads)
                .collect::<Vec<_>>()
        };

        assert!(is_linearizable(&reads([FIRST, FIRST, FIRST])));
        assert!(is_linearizable(&reads([FIRST, FIRST, SECOND])));
        assert!(!is_linearizable(&reads([FIRST, SECOND, FIRST])));
    }

    #[test]
    fn a_precondition_fails_only_where_the_movie_was_another() {
        let refused = retitled(Some(FIRST), MovieResponse::PreconditionFailed, (4, 5));
        let changed = retitled(None, MovieResponse::Movie(SECOND), (2, 3));

        assert!(is_linearizable(&[created(), changed, refused]));
        assert!(!is_linearizable(&[created(), refused]));
    }

    #[test]
    fn of_two_changes_with_one_precondition_one_fails() {
        let first = retitled(Some(FIRST), MovieResponse::Movie(SECOND), (2, 5));
        let second = |answered| retitled(Some(FIRST), answered, (3, 4));

        assert!(is_linearizable(&[
            created(),
            first,
            second(MovieResponse::PreconditionFailed)
        ]));
        assert!(!is_linearizable(&[
            created(),
            first,
            second(MovieResponse::Movie(SECOND))
        ]));
    }

    #[test]
    fn a_movie_that_was_deleted_does_not_come_back() {
        let delete = MovieRequest::Delete { only_if: None };
        let deleted = operation(delete, MovieResponse::Deleted, (2, 3));
        let again = operation(delete, MovieResponse::NoSuchMovie, (4, 5));

        assert!(is_linearizable(&[created(), deleted, again]));
        assert!(!is_linearizable(&[
            created(),
            deleted,
            read(MovieResponse::Movie(FIRST), (6, 7))
        ]));
    }
}
