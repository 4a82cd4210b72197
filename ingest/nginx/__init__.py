"""nginx' logs: files that are followed, and counters made of access and error lines wherever they come from."""
