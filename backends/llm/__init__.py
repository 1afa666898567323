"""The language-model replica: text in, token streams out, through one paged, batched engine.

    socket thread                              device thread
    openai → prompt → Generation ──submit──▶   engine: scheduler → Step → runner → sampler
    rendered pieces ◀── text ◀── Output  ◀──emit── (one list per step)

`generation` is the seam between text and tokens, `step` the seam between scheduling and tensors.
"""
