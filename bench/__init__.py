"""Measurements of Penstock, beside its rivals and beside the least that could do the job.

`scenarios` are what `python -m bench run` runs; `contenders`, `serving` and `rivals` start servers;
`load` puts load on them; `series` repeats in turns; `record` reports. `sim` runs the production
policies in simulated time. Nothing else imports this package.
"""
