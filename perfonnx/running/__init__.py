"""Running models: opened with a session, timed, profiled, their memory measured."""
