"""A conversation through the OpenAI SDK: `python examples/llm/chat.py [--url URL] [QUESTION]`.

Without a question it reads them from the terminal until an empty line or Ctrl-D.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from openai import OpenAI, OpenAIError

URL, MODEL = "http://127.0.0.1:8082/v1", "smollm2"


def answer(client: OpenAI, messages: list[dict[str, str]]) -> Iterator[str]:
    """The pieces of the next answer, as they are generated."""
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        stream=True,
        temperature=0,
        max_tokens=200,
    )
    for part in stream:
        if part.choices and (text := part.choices[0].delta.content):
            yield text


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk to a model that Penstock serves.")
    parser.add_argument("question", nargs="?", help="ask this one and leave")
    parser.add_argument("--url", default=URL, help=f"default: {URL}")
    arguments = parser.parse_args()
    # Without keys in the gateway's configuration, any key will do.
    client = OpenAI(base_url=arguments.url, api_key="unused")
    messages: list[dict[str, str]] = []
    while question := arguments.question or _read():
        messages.append({"role": "user", "content": question})
        said = ""
        try:
            for text in answer(client, messages):
                print(text, end="", flush=True)
                said += text
        except OpenAIError as error:
            parser.exit(1, f"{arguments.url}: {error}\n")
        print()
        messages.append({"role": "assistant", "content": said})
        if arguments.question:
            return


def _read() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
