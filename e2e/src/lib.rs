//! The tests of the whole system stand in `tests/`; there is nothing here to build on.
