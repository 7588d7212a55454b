#!/usr/bin/env python3
"""Frameworks against a running server: check_frameworks.py BASE_URL langchain|llama_index. Each in its own environment."""
import json
import sys
import urllib.request

BASE, WANTED = sys.argv[1].rstrip("/"), sys.argv[2]
MODEL = json.load(urllib.request.urlopen(BASE + "/v1/models"))["data"][0]["id"]
passed = 0


def check(condition, what):
    global passed
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    passed += 1


def check_langchain():
    import asyncio

    from langchain_core.tools import tool
    from langchain_deepseek import ChatDeepSeek
    from langchain_openai import ChatOpenAI, OpenAI
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        """Somebody in a story."""

        name: str = Field(max_length=12)
        age: int = Field(ge=1, le=99)

    @tool
    def now(utc: bool) -> str:
        """Tells the time."""
        return "noon"

    chat = ChatOpenAI(model=MODEL, base_url=BASE + "/v1", api_key="none", max_tokens=12, temperature=0, max_retries=0)
    whole = chat.invoke("Once upon a time")
    check(whole.content and whole.usage_metadata["output_tokens"] <= 12, "ChatOpenAI.invoke")
    pieces = list(chat.stream("Once upon a time", stream_usage=True))
    check("".join(piece.content for piece in pieces) == whole.content, "ChatOpenAI.stream")
    check(sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == whole.usage_metadata["output_tokens"], "usage in a stream")
    check(len(chat.batch(["The dog", "The cat", "The sun"])) == 3, "ChatOpenAI.batch")
    check(asyncio.run(chat.ainvoke("The dog")).content, "ChatOpenAI.ainvoke")
    structured = ChatOpenAI(model=MODEL, base_url=BASE + "/v1", api_key="none", max_tokens=300, temperature=1.2, seed=4, max_retries=0)
    person = structured.with_structured_output(Person, method="json_schema", strict=True).invoke("Once upon a time")
    check(isinstance(person, Person) and 1 <= person.age <= 99, "with_structured_output")
    called = structured.bind_tools([now], tool_choice="now").invoke("What time is it?")
    check(called.tool_calls[0]["name"] == "now" and isinstance(called.tool_calls[0]["args"]["utc"], bool), "bind_tools")
    logprobs = chat.bind(logprobs=True, top_logprobs=2).invoke("The dog").response_metadata["logprobs"]["content"]
    check(all(len(token["top_logprobs"]) == 2 for token in logprobs), "logprobs")
    completion = OpenAI(model=MODEL, base_url=BASE + "/v1", api_key="none", max_tokens=12, temperature=0, max_retries=0)
    check(completion.invoke("Once upon a time"), "OpenAI (completions)")

    deepseek = ChatDeepSeek(model="deepseek-chat", api_base=BASE, api_key="none", max_tokens=12, temperature=0, max_retries=0)
    said = deepseek.invoke("Once upon a time")
    check(said.content == whole.content, "ChatDeepSeek.invoke without /v1")
    check("".join(piece.content for piece in deepseek.stream("Once upon a time")) == said.content, "ChatDeepSeek.stream")


def check_llama_index():
    import asyncio

    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    hello = [ChatMessage(role="user", content="Once upon a time")]
    chat = OpenAILike(model=MODEL, api_base=BASE + "/v1", api_key="none", is_chat_model=True, context_window=4096, max_tokens=12, temperature=0, max_retries=0)
    whole = chat.chat(hello).message.content
    check(whole, "chat")
    check("".join(piece.delta or "" for piece in chat.stream_chat(hello)) == whole, "stream_chat")
    check(asyncio.run(chat.achat(hello)).message.content == whole, "achat")
    completions = OpenAILike(model=MODEL, api_base=BASE + "/v1", api_key="none", is_chat_model=False, context_window=4096, max_tokens=12, temperature=0, max_retries=0)
    text = completions.complete("Once upon a time").text
    check(text, "complete")
    check("".join(piece.delta or "" for piece in completions.stream_complete("Once upon a time")) == text, "stream_complete")


{"langchain": check_langchain, "llama_index": check_llama_index}[WANTED]()
print(f"{WANTED}: {passed} checks passed")
