"""Which sentence is nearest in meaning? `python examples/embeddings/search.py [QUESTION]`"""

from __future__ import annotations

import argparse

from openai import OpenAI, OpenAIError

URL, MODEL = "http://127.0.0.1:8084/v1", "minilm"
SENTENCES = [
    "A man is eating food.",
    "A woman is playing the violin.",
    "The new model was published and went live.",
    "A cheetah chases its prey across a field.",
    "Paris is the capital of France.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the sentence that is nearest in meaning.")
    parser.add_argument("question", nargs="*", help="default: Someone is having lunch.")
    parser.add_argument("--url", default=URL, help=f"default: {URL}")
    arguments = parser.parse_args()
    question = " ".join(arguments.question) or "Someone is having lunch."
    client = OpenAI(base_url=arguments.url, api_key="unused")
    try:
        answer = client.embeddings.create(model=MODEL, input=[question, *SENTENCES])
    except OpenAIError as error:
        parser.exit(1, f"{arguments.url}: {error}\n")
    first, *others = (item.embedding for item in answer.data)
    # Embeddings have length 1, so that the product is the cosine of their angle.
    nearness = [sum(a * b for a, b in zip(first, other, strict=True)) for other in others]
    for score, sentence in sorted(zip(nearness, SENTENCES, strict=True), reverse=True):
        print(f"{score:6.3f}  {sentence}")


if __name__ == "__main__":
    main()
