#!/usr/bin/env python3
"""Real clients against a running server: check_clients.py BASE_URL CLIENT...

Clients: openai anthropic prometheus langchain_openai langchain_deepseek llama_index. Each has its pins in requirements/ and an
environment of its own, and is imported only when its checks are asked for.
"""
import asyncio
import json
import math
import sys
import urllib.error
import urllib.request

BASE = sys.argv[1].rstrip("/")
WANTED = sys.argv[2:]
MODEL = json.load(urllib.request.urlopen(BASE + "/v1/models"))["data"][0]["id"]
HELLO = [{"role": "user", "content": "Once upon a time"}]
passed = 0


def check(condition, what):
    global passed
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    passed += 1


def check_openai():
    import openai
    from pydantic import BaseModel, Field

    client = openai.OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)
    check([m.id for m in client.models.list()][0] == MODEL, "models.list")
    check(client.models.retrieve(MODEL).id == MODEL, "models.retrieve")

    text = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=16, temperature=0)
    check(text.choices[0].text and text.usage.completion_tokens <= 16, "completions")
    pieces = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=16, temperature=0, stream=True)
    check("".join(p.choices[0].text for p in pieces) == text.choices[0].text, "completions, streamed")
    scored = client.completions.create(model=MODEL, prompt=[5, 6, 7, 8], max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1)
    logprobs = scored.choices[0].logprobs
    check(len(logprobs.token_logprobs) == 5 and logprobs.token_logprobs[0] is None, "echoed logprobs of token ids")
    check(all(p == max(t.values()) or p <= max(t.values()) for p, t in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:])), "top logprobs")
    check(len(client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=2).choices) == 4, "two prompts, two answers each")

    chat = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, logprobs=True, top_logprobs=2, temperature=0)
    check(chat.choices[0].message.role == "assistant" and chat.choices[0].finish_reason in ("stop", "length"), "chat")
    check(all(len(t.top_logprobs) == 2 and t.bytes is not None for t in chat.choices[0].logprobs.content), "chat logprobs")
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, stream=True, temperature=0, stream_options={"include_usage": True}))
    check(chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens <= 12, "chat, streamed")
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check(said == chat.choices[0].message.content, "the stream says what the whole says")

    class Person(BaseModel):
        name: str = Field(max_length=12)
        age: int = Field(ge=1, le=99)

    parsed = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Person, max_tokens=300, temperature=1.2, seed=4)
    check(1 <= parsed.choices[0].message.parsed.age <= 99, "parse")
    any_json = client.chat.completions.create(model=MODEL, messages=HELLO, response_format={"type": "json_object"}, max_tokens=400, seed=1)
    if any_json.choices[0].finish_reason == "stop":
        json.loads(any_json.choices[0].message.content)
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {"utc": {"type": "boolean"}}, "required": ["utc"], "additionalProperties": False}}}
    called = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[tool], tool_choice={"type": "function", "function": {"name": "now"}}, max_tokens=200, seed=4)
    check(isinstance(json.loads(called.choices[0].message.tool_calls[0].function.arguments)["utc"], bool), "a named tool")

    response = client.responses.create(model=MODEL, input="Once upon a time", max_output_tokens=8, temperature=0)
    check(response.output_text and response.status in ("completed", "incomplete"), "responses")
    with client.responses.stream(model=MODEL, input="Once upon a time", max_output_tokens=8, temperature=0) as stream:
        kinds = [event.type for event in stream]
    check(kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), "responses, streamed")

    for body, field in (({"temperature": 1e9}, "temperature"), ({"top_p": 2}, "top_p")):
        try:
            client.chat.completions.create(model=MODEL, messages=HELLO, **body)
            check(False, "an error was expected")
        except openai.BadRequestError as error:
            check(error.param == field, f"the error names {field}")
    try:
        client.chat.completions.create(model="other", messages=HELLO)
        check(False, "an unknown model was served")
    except openai.NotFoundError as error:
        check(error.code == "model_not_found", "unknown model")

    async def many():
        async with openai.AsyncOpenAI(base_url=BASE, api_key="none") as aclient:  # without /v1, as DeepSeek's clients do
            answers = await asyncio.gather(*[aclient.completions.create(model=MODEL, prompt="The dog", max_tokens=4, seed=i) for i in range(16)])
            return len(answers)

    check(asyncio.run(many()) == 16, "async")


def check_anthropic():
    import anthropic

    client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
    message = client.messages.create(model=MODEL, max_tokens=8, messages=HELLO, extra_body={"temperature": 0})
    check(message.role == "assistant" and message.stop_reason in ("end_turn", "max_tokens") and message.usage.output_tokens <= 8, "messages")
    with client.messages.stream(model=MODEL, max_tokens=8, system="A story.", messages=HELLO, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        check(stream.get_final_message().content[0].text == text, "messages, streamed")
    check(client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 0, "count_tokens")
    check(client.models.list().data[0].id == MODEL, "models")
    try:
        client.messages.create(model=MODEL, max_tokens=8, messages=[])
        check(False, "an error was expected")
    except anthropic.BadRequestError as error:
        check("messages" in str(error), "the error names the field")


def check_prometheus():
    from prometheus_client.parser import text_string_to_metric_families

    text = urllib.request.urlopen(BASE + "/metrics").read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in ("fathom_prompt_tokens", "vllm:prompt_tokens", "vllm:time_to_first_token_seconds", "vllm:kv_cache_usage_perc", "http_requests", "process_cpu_seconds"):
        check(name in families, f"metric {name}")
    check(all(math.isfinite(sample.value) for family in families.values() for sample in family.samples), "metrics are numbers")


def check_langchain_openai():
    from langchain_core.tools import tool
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


def check_langchain_deepseek():
    from langchain_core.tools import tool
    from langchain_deepseek import ChatDeepSeek

    @tool
    def now(utc: bool) -> str:
        """Tells the time."""
        return "noon"

    chat = ChatDeepSeek(model="deepseek-chat", api_base=BASE, api_key="none", max_tokens=12, temperature=0, max_retries=0)  # without /v1
    whole = chat.invoke("Once upon a time")
    check(whole.content and whole.usage_metadata["output_tokens"] <= 12, "ChatDeepSeek.invoke")
    pieces = list(chat.stream("Once upon a time"))
    check("".join(piece.content for piece in pieces) == whole.content, "ChatDeepSeek.stream")
    check(asyncio.run(chat.ainvoke("Once upon a time")).content == whole.content, "ChatDeepSeek.ainvoke")
    beta = ChatDeepSeek(model="deepseek-chat", api_base=BASE + "/beta", api_key="none", max_tokens=200, temperature=1.2, seed=4, max_retries=0)
    called = beta.bind_tools([now], tool_choice="now", strict=True).invoke("What time is it?")
    check(called.tool_calls[0]["name"] == "now" and isinstance(called.tool_calls[0]["args"]["utc"], bool), "strict tools under /beta")


def check_llama_index():
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


for name in WANTED:
    before = passed
    globals()[f"check_{name}"]()
    print(f"{name}: {passed - before} checks passed")
