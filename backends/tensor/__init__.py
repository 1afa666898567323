"""Tensor replicas: batches of rows in, batches of rows out, through one model on one device.

`job` and `reply` read and write frames without torch; `codec`, `joining`, `splitting` and `runner`
run on the device thread; `loading` makes versions; `replica` puts them together.
"""
