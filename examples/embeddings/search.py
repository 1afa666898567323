"""Which sentence is nearest in meaning? `python examples/embeddings/search.py QUESTION`"""

from __future__ import annotations

import sys

from openai import OpenAI

SENTENCES = [
    "A man is eating food.",
    "A woman is playing the violin.",
    "The new model was published and went live.",
    "A cheetah chases its prey across a field.",
    "Paris is the capital of France.",
]


def main() -> None:
    question = " ".join(sys.argv[1:]) or "Someone is having lunch."
    client = OpenAI(base_url="http://127.0.0.1:8084/v1", api_key="unused")
    answer = client.embeddings.create(model="minilm", input=[question, *SENTENCES])
    first, *others = (item.embedding for item in answer.data)
    # Embeddings have length 1, so that the product is the cosine of their angle.
    nearness = [sum(a * b for a, b in zip(first, other, strict=True)) for other in others]
    for score, sentence in sorted(zip(nearness, SENTENCES, strict=True), reverse=True):
        print(f"{score:6.3f}  {sentence}")


if __name__ == "__main__":
    main()
