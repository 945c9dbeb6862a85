//! Suites over the whole product. `tests/tidy` reads the sources; the others start real processes.
