"""OpenAI's /v1 over all models of a gateway, whatever answers them."""

from gateway.openai.surface import OpenAISurface

__all__ = ["OpenAISurface"]
