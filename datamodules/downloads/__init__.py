"""Pictures of a list's urls, fetched by img2dataset in an environment of its own, judged and filed by us."""
