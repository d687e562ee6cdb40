"""Several processes under gunicorn's arbiter, which answer for each other."""
