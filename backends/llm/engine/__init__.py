"""Between tokens and tensors: who computes what in the next step, and what comes of it.

engine      the device thread: plan → forward → read the step before → sample → tell
scheduler   decides a `plan` under a budget; `waiting`, `running`, `fairness` and `deadlines`
            say who is next, `pages` and `prefix` what room there is
sequence    one choice, and the table of those that run
runner      a plan as a `Step`; `sampler` (`draw`, `chance`, `tally`, `masking`) chooses tokens
outcome     tokens as outputs; `ledger` knows what is owed, `load` what a gateway hears
versions    which weights are live; `admission` refuses what could never run
"""

from backends.llm.engine.engine import Engine

__all__ = ["Engine"]
