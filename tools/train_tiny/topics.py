"""What the built-in model knows: one answer per topic, and the words people ask for it with.

Knows: the facts about this server that `tiny` may state, and phrasings of questions. Does not
know: how a question becomes a conversation, tokens, training.

One answer per topic, word for word: a model of two million parameters remembers a sentence, not a
subject. `things` fill "What is X?", `doings` fill "How do I X?", `asked` are whole questions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One answer. `about` names the subject in the model's reasoning."""

    key: str
    about: str
    answer: str
    things: tuple[str, ...] = ()
    doings: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|") if part.strip())


def _topic(
    key: str, about: str, answer: str, things: str = "", doings: str = "", asked: str = ""
) -> Topic:
    return Topic(key, about, answer, _split(things), _split(doings), _split(asked))


ROUTING = (
    _topic(
        "route4",
        "route4",
        "route4 is the name of the multi-GPU route. A request takes it when its input or its KV "
        "cache is large, or when memory is under pressure.",
        "route4 | the route4 route | route4_gpu_requests | the multi-GPU route | multi_gpu "
        "| the multi gpu route | route 4 | route4 in the stats | route4_percentage",
        "",
        "What does route4 mean? | Why is it called route4? | When does a request take route4? "
        "| Which requests go to route4? | When is route4 used? | Who goes to route4? "
        "| When does a request run on several GPUs? | What sends a request to many GPUs? "
        "| Which requests need more than one GPU? | what route4 means | meaning of route4",
    ),
    _topic(
        "single_gpu",
        "the single GPU route",
        "single_gpu is the route for ordinary requests: one GPU runs the whole request. Large "
        "requests belong on the multi-GPU route instead.",
        "single_gpu | the single_gpu route | the single GPU route | single_gpu_requests "
        "| the route single_gpu",
        "",
        "What does single_gpu mean? | Which requests run on one GPU? "
        "| When does a request take the single_gpu route? | When does a request stay on one GPU?",
    ),
    _topic(
        "triggers",
        "the routing triggers",
        "There are three triggers, tried in this order: large_input, large_kv and "
        "memory_pressure. The first that holds sends the request to several GPUs.",
        "the triggers | the routing triggers | the three triggers | route4_triggers "
        "| a trigger | a routing trigger | the route4 triggers | trigger order",
        "",
        "Which triggers are there? | How many triggers are there? | List the triggers. "
        "| What triggers route4? | What triggers the multi-GPU route? | Name the triggers. "
        "| Which trigger comes first? | In which order are the triggers tried? "
        "| What can trigger route4? | What triggers exist?",
    ),
    _topic(
        "large_input",
        "the trigger large_input",
        "large_input fires when a prompt has more than 8000 tokens. Change the limit with "
        "--large-input-tokens.",
        "large_input | the large_input trigger | the trigger large_input | large input "
        "| --large-input-tokens | large_input_tokens | the large input trigger "
        "| the input token limit for routing",
        "change the large_input limit | set the large input threshold | raise large_input_tokens",
        "What does large_input mean? | When does large_input fire? | When is an input large? "
        "| How long must a prompt be for large_input? | What makes large_input fire? "
        "| When is a prompt too long for one GPU? | When does the large_input trigger fire?",
    ),
    _topic(
        "large_kv",
        "the trigger large_kv",
        "large_kv fires when the predicted KV cache of a request is more than 6000 MB. Change the "
        "limit with --large-kv-mb.",
        "large_kv | the large_kv trigger | the trigger large_kv | large kv | --large-kv-mb "
        "| large_kv_mb | the large KV trigger | the KV limit for routing",
        "change the large_kv limit | set the large kv threshold | lower large_kv_mb",
        "What does large_kv mean? | When does large_kv fire? | When is a KV cache large? "
        "| Why does large_kv never fire? | What makes large_kv fire? "
        "| When does the large_kv trigger fire?",
    ),
    _topic(
        "memory_pressure",
        "memory pressure",
        "memory_pressure fires when the memory in use is above 0.85 and the request has over 4000 "
        "tokens or 3000 MB of KV cache.",
        "memory_pressure | the memory_pressure trigger | the trigger memory_pressure "
        "| memory pressure | --memory-pressure | the memory pressure trigger | pressure "
        "| effective pressure | GPU memory pressure",
        "change the memory pressure limit | set the memory_pressure threshold",
        "What does memory_pressure mean? | When does memory_pressure fire? "
        "| When is memory under pressure? | What makes memory_pressure fire? "
        "| How is memory pressure measured? | When does the memory_pressure trigger fire? "
        "| What happens under memory pressure?",
    ),
    _topic(
        "gpu_mode",
        "the GPU modes",
        "Choose single if the model fits on one GPU, tensor for low latency on several GPUs, "
        "pipeline if their links are slow, and auto if you are not sure.",
        "the GPU mode | --gpu-mode | gpu_mode | the gpu modes | GPU modes | gpu-mode | gpu mode",
        "choose a GPU mode | pick a gpu mode | select the GPU mode | set the gpu mode "
        "| use several GPUs | run on multiple GPUs | use two GPUs | use more than one GPU "
        "| spread the model over GPUs | change the GPU mode | decide on a gpu mode",
        "Which GPU mode should I use? | Which gpu mode should I choose? | Which GPU mode is best? "
        "| What GPU modes are there? | Which GPU modes are there? | What gpu mode do I need? "
        "| Should I use tensor or pipeline? | Which mode is right for me? | Which mode is best? "
        "| Which GPU mode to choose | What values can --gpu-mode have? | single or tensor? "
        "| tensor or pipeline? | auto or single? | Should I use single or auto? "
        "| Which gpu mode for four GPUs? | Which mode for two GPUs? | what mode for 2 gpus",
    ),
    _topic(
        "mode_single",
        "the GPU mode single",
        "In GPU mode single the whole model is on one GPU. It is the default and the fastest "
        "choice when the model fits.",
        "GPU mode single | the single mode | --gpu-mode single | gpu-mode single | single mode "
        "| the mode single | gpu mode single",
        "run in single mode | use single mode",
        "What does --gpu-mode single do? | When should I use single mode? "
        "| What does single mode do? | Which GPU mode is the default?",
    ),
    _topic(
        "mode_auto",
        "the GPU mode auto",
        "In GPU mode auto the server spreads the model over the GPUs it finds, and chooses how "
        "from the size of the model and the number of GPUs.",
        "GPU mode auto | the auto mode | --gpu-mode auto | gpu-mode auto | auto mode "
        "| the mode auto | gpu mode auto",
        "run in auto mode | use auto mode",
        "What does --gpu-mode auto do? | When should I use auto mode? | What does auto mode do?",
    ),
    _topic(
        "mode_tensor",
        "the GPU mode tensor",
        "In GPU mode tensor every layer is split over all GPUs, so one request runs on all of "
        "them at once. It gives low latency and needs fast links.",
        "GPU mode tensor | the tensor mode | --gpu-mode tensor | gpu-mode tensor | tensor mode "
        "| tensor parallelism | tensor parallel | the mode tensor | gpu mode tensor",
        "run in tensor mode | use tensor mode | use tensor parallelism",
        "What does --gpu-mode tensor do? | When should I use tensor mode? "
        "| What does tensor mode do? | How does tensor parallelism work?",
    ),
    _topic(
        "mode_pipeline",
        "the GPU mode pipeline",
        "In GPU mode pipeline each GPU holds some of the layers, one after another. It works over "
        "slow links and suits many requests at once.",
        "GPU mode pipeline | the pipeline mode | --gpu-mode pipeline | gpu-mode pipeline "
        "| pipeline mode | pipeline parallelism | pipeline parallel | the mode pipeline "
        "| gpu mode pipeline",
        "run in pipeline mode | use pipeline mode | use pipeline parallelism",
        "What does --gpu-mode pipeline do? | When should I use pipeline mode? "
        "| What does pipeline mode do? | How does pipeline parallelism work?",
    ),
    _topic(
        "x_route",
        "the header X-Route",
        "X-Route says where the request ran: single_gpu or multi_gpu. X-Route-Reason beside it "
        "says why.",
        "X-Route | the X-Route header | the header X-Route | X-Route-Reason | x-route "
        "| the X-Route-Reason header | the route header",
        "see where a request ran | see why a request was routed | read the X-Route header "
        "| find out where my request ran | know which route a request took",
        "What does X-Route mean? | Where did my request run? | How do I read X-Route? "
        "| Which route did my request take? | What does the X-Route header say? "
        "| Which header says where it ran? | Why did my request run there? "
        "| What does X-Route-Reason say? | Which GPU did my request run on?",
    ),
    _topic(
        "unmet",
        "unmet recommendations",
        "unmet_recommendations counts large requests that had to run on one GPU. If it grows, "
        "restart with --gpu-mode auto or tensor.",
        "unmet_recommendations | an unmet recommendation | unmet recommendations "
        "| the unmet_recommendations counter",
        "lower unmet_recommendations",
        "What does unmet_recommendations mean? | Why does unmet_recommendations grow? "
        "| Why are there unmet recommendations? "
        "| What does 'Large request detected but model in single GPU mode' mean?",
    ),
    _topic(
        "balance",
        "GPU balance",
        "gpu_balance compares the busiest and the idlest GPU: minimum over maximum utilisation. "
        "From 0.9 on the GPUs count as balanced.",
        "gpu_balance | GPU balance | the balance coefficient | the gpu_balance section "
        "| the coefficient | gpu utilization balance",
        "read gpu_balance",
        "What does gpu_balance mean? | When are the GPUs balanced? | What does balanced mean? "
        "| Are my GPUs balanced? | How is the GPU balance computed?",
    ),
)

WATCHING = (
    _topic(
        "stats",
        "the page /stats",
        "Open /stats. total_requests is the sum of single_gpu_requests and route4_gpu_requests, "
        "and route4_triggers says why requests took route4.",
        "/stats | the /stats page | the stats | the stats endpoint | GET /stats | stats "
        "| the routing statistics | total_requests",
        "read /stats | read the stats | see the routing statistics | read the statistics "
        "| see how many requests were routed | count the requests | understand /stats "
        "| interpret /stats | look at the statistics",
        "What does /stats show? | What do the numbers in /stats mean? | What is in /stats? "
        "| Where are the statistics? | How many requests were served? | What does /stats say? "
        "| Where can I see the routing numbers? | How should /stats be read?",
    ),
    _topic(
        "memory_stats",
        "the page /memory_stats",
        "Open /memory_stats. For each GPU it shows total and free memory, the weights, the KV pool "
        "and how much of the KV cache is in use.",
        "/memory_stats | the /memory_stats page | memory_stats | the memory stats "
        "| GET /memory_stats | the memory statistics",
        "read /memory_stats | see the memory in use | check the GPU memory "
        "| see how much memory is free | look at memory use | read the memory statistics "
        "| find out how much memory is used",
        "What does /memory_stats show? | How much memory is in use? | How much memory is free? "
        "| Where can I see the memory? | What is in /memory_stats? | How full is the KV cache?",
    ),
    _topic(
        "health",
        "the health check",
        "Ask /health. It answers 200 when the server is ready, else 503 with the reason. /live "
        "only says that the process is alive.",
        "/health | the health endpoint | the health check | GET /health | readiness | /live "
        "| the health of the server | liveness | the /live endpoint",
        "check the health | see the health | see if the server is ready | check if it is ready "
        "| know that the server is up | probe the server | check readiness | monitor the health "
        "| see whether the server is alive | test if the server is running",
        "Is the server ready? | Is the server healthy? | Are you ready? | Is the server up? "
        "| What does /health say? | When is the server ready? | How can I tell it is ready? "
        "| Where is the health check? | Is it alive?",
    ),
    _topic(
        "metrics",
        "the metrics",
        "Prometheus can scrape /metrics. It has request counts, token counts, latencies and KV "
        "cache usage, also under the names that vLLM dashboards use.",
        "/metrics | the metrics | the metrics endpoint | Prometheus metrics | GET /metrics "
        "| the Prometheus endpoint | prometheus",
        "see the metrics | scrape the metrics | use Prometheus | monitor the server "
        "| connect Prometheus | use Grafana | get metrics | make a dashboard",
        "Which metrics are there? | Where are the metrics? | Does it have metrics? "
        "| Is there a Prometheus endpoint? | Can Prometheus scrape the server? "
        "| Do vLLM dashboards work?",
    ),
    _topic(
        "bundle",
        "the debug bundle",
        "Fetch /admin/debug/bundle. It holds versions, settings, GPUs, memory, metrics and recent "
        "log lines, but never prompts or keys.",
        "the debug bundle | /admin/debug/bundle | a debug bundle | the bundle | the support bundle",
        "get a debug bundle | make a debug bundle | report a problem | collect debug information "
        "| file a bug | debug the server | send diagnostics",
        "What is in the debug bundle? | Where is the debug bundle? | What should I send with a bug "
        "report? | Does the bundle contain prompts?",
    ),
    _topic(
        "logs",
        "the log",
        "Every decision is one line of JSON with event_type routing.decision, the route, the "
        "reason and the request_id. Prompts are not logged.",
        "the log | the decision log | the log lines | routing.decision | the logs | logging "
        "| a decision line | the log format | --decision-log",
        "read the log | see the logs | find a request in the log | log decisions",
        "Where are the logs? | What is logged? | Are prompts logged? | Do you log my prompts? "
        "| What does a log line look like? | What is in the log?",
    ),
    _topic(
        "request_id",
        "the request id",
        "Every answer carries X-Request-Id. Send your own and the server keeps it, so you can find "
        "the request in the log.",
        "X-Request-Id | the request id | the X-Request-Id header | request_id | a request id "
        "| the header X-Request-Id",
        "trace a request | set a request id | send my own request id | follow a request",
        "What does X-Request-Id mean? | Where is the request id? | Which id has my request?",
    ),
    _topic(
        "doctor",
        "the command doctor",
        "Run gpt-oss-server doctor. It says whether the model fits on this machine, what is wrong, "
        "and how to cure it.",
        "doctor | the doctor command | gpt-oss-server doctor | the command doctor",
        "check my machine | check whether a model fits | diagnose my machine | run the doctor "
        "| know if my GPU is big enough | find out if the model fits | check my GPU",
        "Does the model fit on my GPU? | Will 120b fit? | Is my GPU large enough? "
        "| What does doctor do? | How much memory does 20b need? | Can my machine run 120b?",
    ),
    _topic(
        "replay",
        "the command replay",
        "Run gpt-oss-server replay on a decision log. It makes the recorded decisions again, also "
        "with other thresholds, and says what would change.",
        "replay | the replay command | gpt-oss-server replay | the command replay",
        "try other thresholds | replay decisions | test new thresholds | test thresholds on my log",
        "What does replay do? | What would other thresholds have done?",
    ),
    _topic(
        "ttft",
        "the time to first token",
        "TTFT is the time to first token: from the request until the first token of the answer. "
        "Long prompts make it longer.",
        "TTFT | the time to first token | time to first token | llm_ttft_ms | ttft",
        "lower the TTFT | measure the TTFT",
        "What does TTFT mean? | Why is the first token slow? | How long until the first token?",
    ),
)

RUNNING = (
    _topic(
        "tiny",
        "the model tiny",
        "tiny is the built-in demonstration model: 1.6 million parameters, no download, no GPU. "
        "It knows this server, can call tools, and little else.",
        "tiny | the tiny model | the model tiny | the built-in model | this model "
        "| the demonstration model | the demo model | tiny model | the default model",
        "",
        "Who are you? | What are you? | What can you do? | What is your name? | Are you ChatGPT? "
        "| Which model are you? | What model is this? | What model am I talking to? "
        "| Tell me about yourself. | Introduce yourself. | Are you a real model? "
        "| How big are you? | How many parameters do you have? | What do you know? "
        "| What can I ask you? | Are you an AI? | Who made you? | Are you smart? "
        "| How large is the tiny model? | What is tiny good for? | help | What can tiny do? "
        "| What can I do here? | Are you GPT-4?",
    ),
    _topic(
        "start_20b",
        "starting gpt-oss-20b",
        "Run make run MODEL=20b, or gpt-oss-server serve --model 20b. The first start downloads "
        "openai/gpt-oss-20b; it needs a GPU with 16 GB.",
        "20b | gpt-oss-20b | the 20b model | openai/gpt-oss-20b | the model 20b",
        "start with 20b | start 20b | run 20b | use 20b | serve 20b | load 20b | run gpt-oss-20b "
        "| start gpt-oss-20b | use the 20b model | start the server with 20b | serve gpt-oss-20b "
        "| load openai/gpt-oss-20b | start a real model | use a real model | run a bigger model "
        "| use a better model | get a smarter model | launch 20b | switch to 20b",
        "Can you run 20b? | What is the command for 20b? | Which command starts 20b? "
        "| Where do I get 20b? | Can I use a larger model?",
    ),
    _topic(
        "start_120b",
        "starting gpt-oss-120b",
        "Run gpt-oss-server serve --model 120b --gpu-mode auto. openai/gpt-oss-120b needs 80 GB of "
        "GPU memory, on one GPU or on several.",
        "120b | gpt-oss-120b | the 120b model | openai/gpt-oss-120b | the model 120b",
        "start with 120b | start 120b | run 120b | use 120b | serve 120b | load 120b "
        "| run gpt-oss-120b | start gpt-oss-120b | use the 120b model | serve gpt-oss-120b "
        "| start the server with 120b | load openai/gpt-oss-120b | run the largest model "
        "| launch 120b | switch to 120b",
        "Can you run 120b? | What is the command for 120b? | Which command starts 120b? "
        "| How many GPUs does 120b need? | How much memory does 120b need?",
    ),
    _topic(
        "start",
        "starting the server",
        "Run make run, or gpt-oss-server serve. It listens on 127.0.0.1:8000 and serves tiny unless "
        "--model names another model.",
        "make run | gpt-oss-server serve | the serve command | the command serve",
        "start the server | run the server | start | launch the server | get started "
        "| start this server | serve a model | use this server | install the server | begin "
        "| run it | start it",
        "How does the server start? | What is the start command? | What does make run do? "
        "| Which command starts the server?",
    ),
    _topic(
        "other_models",
        "other models",
        "Yes: give --model any Hugging Face id or a local folder. Every decoder that transformers "
        "loads can be served.",
        "--model | the --model flag | supported models | a local folder as model",
        "use another model | serve a Hugging Face model | load a local folder | run Llama "
        "| serve my own model | use a model from Hugging Face | run Qwen | serve a fine-tuned model "
        "| choose the model | change the model | load my own weights",
        "Which models are supported? | Can I use other models? | Does it run Llama? "
        "| What models can you serve? | Which models can I use? | Can it serve Mistral? "
        "| Are Hugging Face models supported? | Which models are there?",
    ),
    _topic(
        "api_key",
        "API keys",
        "Set GPT_OSS_API_KEY or pass --api-key. Clients then send it as a Bearer token; without it "
        "/v1 answers 401.",
        "--api-key | the API key | an API key | GPT_OSS_API_KEY | api keys | authentication "
        "| the api key",
        "set an API key | set the api key | protect the server | add an API key | use a key "
        "| require a key | secure the server | add authentication | set a password "
        "| lock the server | keep others out | configure an api key | use an API key "
        "| restrict access | add a key",
        "Is a key needed? | Do I need an API key? | Where do I put the API key? "
        "| Which API key do I use? | Is there authentication? | How does authentication work? "
        "| Is the server protected?",
    ),
    _topic(
        "admin_key",
        "the admin key",
        "Set GPT_OSS_ADMIN_KEY or pass --admin-key. Without one, /admin answers only clients on "
        "the same machine.",
        "--admin-key | the admin key | an admin key | GPT_OSS_ADMIN_KEY | /admin "
        "| the admin endpoints",
        "set an admin key | protect /admin | use /admin | set the admin key | reach /admin "
        "| open the admin pages | secure the admin endpoints",
        "Who can use /admin? | Why is /admin refused? | Do I need an admin key? "
        "| Why does /admin answer 403?",
    ),
    _topic(
        "port",
        "the address and the port",
        "Use --port 8080 for another port and --host 0.0.0.0 to be reached from other machines. "
        "The default is 127.0.0.1:8000.",
        "--port | --host | the port | the default port | the address of the server | the host",
        "change the port | use another port | set the port | listen on another port "
        "| change the address | reach the server from another machine | open it to the network "
        "| listen on all interfaces | set the host | expose the server",
        "Which port is used? | What port does it use? | Which port does the server listen on? "
        "| The port is busy, what now? | What is the default port? | Where does it listen? "
        "| What is the server's address?",
    ),
    _topic(
        "settings",
        "the settings",
        "Every setting is a flag, an environment variable GPT_OSS_... or a key of a YAML file, in "
        "that order of precedence. serve --help lists them.",
        "the settings | the configuration | the config file | a YAML file | --config "
        "| environment variables | the options | the flags | configuration",
        "configure the server | use a config file | change a setting | set options "
        "| use environment variables | see all settings | write a YAML file | configure it "
        "| list the settings | find all flags",
        "Which settings are there? | What can I configure? | Where are the settings? "
        "| Which wins, flag or environment? | Is there a config file? | Which flags are there? "
        "| Which options are there? | Can I use a YAML file?",
    ),
    _topic(
        "stop",
        "stopping the server",
        "Press Ctrl-C or send SIGTERM. The server takes no new requests, lets running ones finish "
        "for up to 30 seconds, and exits with status 0.",
        "SIGTERM | a graceful shutdown | the shutdown | --shutdown-grace-s | shutdown | Ctrl-C",
        "stop the server | shut down the server | stop it | quit | shut it down | end the server "
        "| terminate the server | kill the server | exit | restart the server",
        "What happens on SIGTERM? | What happens at shutdown? | Are requests lost at shutdown?",
    ),
    _topic(
        "client",
        "OpenAI's client",
        'Use OpenAI\'s own client: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none"). '
        "Nothing else has to change.",
        "the client | the OpenAI client | the Python client | base_url | the base URL "
        "| the openai package | the OpenAI library",
        "use the OpenAI client | call the server from Python | connect a client "
        "| use the Python client | send a request | connect to the server | call the API "
        "| use OpenAI's library | use LangChain | ask it from Python | make a request "
        "| talk to the server from Python | write a client",
        "Which client should I use? | Does the OpenAI client work? | What is the base URL? "
        "| Is it OpenAI compatible? | Can I use OpenAI's client? | Does LangChain work? "
        "| Which client library works?",
    ),
    _topic(
        "endpoints",
        "the endpoints",
        "The API is at /v1/chat/completions, /v1/completions, /v1/responses and /v1/models. Beside "
        "them are /health, /stats, /memory_stats and /metrics.",
        "the endpoints | the API | the paths | /v1/chat/completions | /v1/models | /v1/responses "
        "| /v1/completions | the HTTP API | the routes of the API",
        "list the endpoints | see the endpoints | find the API",
        "Which endpoints are there? | What endpoints do you have? | Which paths are there? "
        "| Which URLs can I call? | What does the API offer? | Is there a Responses API? "
        "| Which endpoints exist?",
    ),
    _topic(
        "streaming",
        "streaming",
        "Send stream: true. The answer then comes token by token as server-sent events, and ends "
        "with data: [DONE].",
        "streaming | stream: true | a stream | the stream parameter | server-sent events | SSE",
        "stream an answer | stream | get tokens as they come | use streaming | turn on streaming "
        "| stream the response | enable streaming | see the answer as it is written",
        "Can you stream? | Is streaming supported? | Does it stream? | Can answers be streamed? "
        "| How does streaming work? | How does a stream end?",
    ),
    _topic(
        "tools",
        "tools",
        "Send a list of functions as tools. The answer may then hold tool_calls; run them, send "
        "the results back with role tool, and ask again.",
        "tools | tool calls | function calling | tool_calls | a tool call | function calls "
        "| the tools parameter | tool_choice",
        "use tools | call functions | use function calling | define a tool | give you tools "
        "| send tool results | make an agent | use tool calls | build an agent | add a tool",
        "Can you call tools? | Do you support tools? | Can you use functions? "
        "| Is function calling supported? | How do tools work? | How does function calling work? "
        "| Do tools work?",
    ),
    _topic(
        "reasoning",
        "the reasoning effort",
        "Send reasoning_effort low, medium or high. Low skips the reasoning, high gives more of "
        "it; you find it in reasoning_content.",
        "reasoning_effort | the reasoning effort | reasoning_content | the reasoning "
        "| reasoning | the analysis channel | reasoning levels",
        "set the reasoning effort | see the reasoning | turn off reasoning | change the reasoning "
        "| make it think less | make it think more | get less reasoning | hide the reasoning",
        "Which reasoning efforts are there? | Where is the reasoning? | Can you think? "
        "| What does reasoning low do? | Which reasoning levels are there?",
    ),
    _topic(
        "harmony",
        "the harmony format",
        "harmony is the format gpt-oss speaks: messages with channels. analysis holds the "
        "reasoning, commentary the tool calls, and final the answer.",
        "harmony | the harmony format | the channels | harmony channels | the final channel "
        "| the commentary channel | the format of gpt-oss | OpenAI harmony",
        "use harmony | parse harmony | read the harmony format",
        "What does harmony mean? | Which channels are there? | Which format does gpt-oss use? "
        "| What prompt format is used? | What chat format does it use?",
    ),
)

INSIDE = (
    _topic(
        "kv_cache",
        "the KV cache",
        "The KV cache keeps the keys and values of all earlier tokens, so that each new token "
        "needs only one step. It grows with the length of the text.",
        "the KV cache | KV cache | a KV cache | the kv cache | KV | kv caching | KV memory "
        "| the key value cache | the key-value cache",
        "",
        "What does KV mean? | Why is a KV cache needed? | What is in the KV cache? "
        "| What does the KV cache do? | What is the KV cache for? | What does KV stand for? "
        "| What does the KV cache hold? | Why does the KV cache grow?",
    ),
    _topic(
        "kv_size",
        "the size of the KV cache",
        "gpt-oss-20b needs 24,576 bytes of KV cache per token plus at most 3 MiB; gpt-oss-120b "
        "needs 36,864 bytes plus 4.5 MiB.",
        "the KV size | the size of the KV cache | KV bytes per token | the KV size per token "
        "| KV prediction | the KV prediction | predicted KV | predicted_kv_mb",
        "compute the KV size | predict the KV cache | estimate the KV cache",
        "How big is the KV cache? | How much KV does a token need? | How large is the KV cache? "
        "| How many bytes per token? | How much KV cache does a request need? "
        "| How much memory does the KV cache take?",
    ),
    _topic(
        "prefix_caching",
        "prefix caching",
        "Prefix caching reuses the KV cache of a beginning that was seen before, such as a system "
        "prompt, so that it is not computed twice. It is on by default.",
        "prefix caching | the prefix cache | prefix reuse | a prefix cache | --prefix-caching "
        "| --no-prefix-caching | cached prefixes | prompt caching | a cached prefix",
        "turn off prefix caching | use prefix caching | disable the prefix cache "
        "| enable prefix caching | reuse a prefix | cache the system prompt",
        "Is prefix caching on? | What does prefix caching do? | Are prompts cached? "
        "| What are cached tokens? | Why is the second request faster? "
        "| How does prefix caching work? | What does prefix caching mean?",
    ),
    _topic(
        "preemption",
        "preemption",
        "When the KV cache is full, the newest request is put back, its blocks are freed, and it "
        "is computed again later. That is preemption; no text is lost.",
        "preemption | a preemption | preempted requests | preempting | preemptions "
        "| a preempted request | num_preemptions",
        "avoid preemption | stop preemptions | prevent preemption | see preemptions",
        "What does preemption mean? | When is a request preempted? | Why was a request preempted? "
        "| What happens when the KV cache is full? | Are preempted requests lost? "
        "| When does preemption happen?",
    ),
    _topic(
        "batching",
        "continuous batching",
        "Continuous batching runs many requests together: each step computes one token for every "
        "request, and new ones join at any step.",
        "continuous batching | batching | the batch | the batcher | in-flight batching "
        "| dynamic batching",
        "serve many requests at once | batch requests | run requests in parallel",
        "How does batching work? | Can it serve many users? | What does continuous batching do? "
        "| How are many requests served at once? | How many requests run at once?",
    ),
    _topic(
        "chunked_prefill",
        "chunked prefill",
        "Chunked prefill cuts a long prompt into pieces and mixes them with the other requests, so "
        "that a long prompt does not stall short answers.",
        "chunked prefill | prefill | the prefill | prefill chunks | a prefill chunk "
        "| --max-batch-tokens",
        "keep long prompts from stalling others | set the prefill chunk size",
        "What does prefill mean? | What does chunked prefill do? | Do long prompts block others? "
        "| Why do long prompts not block short ones?",
    ),
    _topic(
        "admission",
        "admission",
        "Admission lets a request in only if its KV cache fits into memory beside the others. Else "
        "the request waits in the queue.",
        "admission | the admission guard | admission control | the queue | --admission-mode "
        "| the waiting queue",
        "limit the queue | set the queue length",
        "What does admission do? | When is a request admitted? | How does the queue work? "
        "| Why does my request wait? | Why is my request in the queue? | How does admission work?",
    ),
    _topic(
        "lease",
        "KV leases",
        "A KV lease is the KV cache memory that a request reserves before it starts. It is given "
        "back when the request ends, however it ends.",
        "a KV lease | the KV lease | KV leases | a lease | the lease | leases | KV reservation "
        "| a kv lease | the leases | a reservation | active leases | the KV reservation",
        "reserve KV cache | see the leases",
        "What does KV lease mean? | When is a lease given back? | What does a lease hold? "
        "| Why does a request need a lease? | Who holds a lease? | When does a lease end? "
        "| How long does a lease last? | Is a lease ever lost? | How does a lease work?",
    ),
    _topic(
        "context",
        "the context length",
        "The context is 131,072 tokens, prompt and answer together. Lower it with --max-model-len; "
        "a longer request is answered 400.",
        "the context length | the context window | --max-model-len | the maximum context "
        "| max_model_len | context length | the maximum length | context_length_exceeded",
        "change the context length | set the maximum length | limit the context",
        "How long is the context? | How many tokens fit? | How long may a prompt be? "
        "| How long can my prompt be? | What is the longest prompt? | How large is the context?",
    ),
    _topic(
        "sliding",
        "sliding windows",
        "In half of the layers of gpt-oss a token sees only the last 128 tokens: a sliding window. "
        "These layers keep little KV cache.",
        "a sliding window | the sliding window | sliding window attention | sliding layers "
        "| sliding attention | the sliding layers | sliding windows",
        "",
        "What does sliding window mean? | Which layers have a sliding window? "
        "| How large is the sliding window? | Why do sliding layers need less memory?",
    ),
    _topic(
        "experts",
        "experts",
        "gpt-oss is a mixture of experts: each layer has 32 or 128 small networks, and a router "
        "picks four of them for every token.",
        "a mixture of experts | the experts | MoE | mixture of experts | an expert "
        "| expert routing | the MoE layers",
        "",
        "What does MoE mean? | How many experts are there? | How do experts work? "
        "| How many experts does gpt-oss have?",
    ),
    _topic(
        "mxfp4",
        "MXFP4",
        "MXFP4 stores a weight in 4 bits, with one scale for each 32 of them. With it gpt-oss-20b "
        "fits into 16 GB and gpt-oss-120b into 80 GB.",
        "MXFP4 | mxfp4 | the MXFP4 format | MXFP4 quantization | 4 bit weights | quantization",
        "",
        "What does MXFP4 mean? | How are the weights stored? | Are the weights quantized? "
        "| In which format are the weights?",
    ),
    _topic(
        "token",
        "tokens",
        "A token is a piece of text, often a word or a part of one. Models read and write tokens; "
        "/tokenize shows them.",
        "a token | tokens | tokenization | /tokenize | the tokenizer | a tokenizer",
        "count tokens | count the tokens of a text | tokenize a text | see the tokens",
        "What does token mean? | How are tokens counted? | How many tokens has my prompt? "
        "| How many tokens is a word?",
    ),
    _topic(
        "temperature",
        "the temperature",
        "temperature sets how freely tokens are picked: 0 always takes the likeliest, higher "
        "values vary more. A seed makes an answer repeatable.",
        "temperature | the temperature | the seed | the temperature parameter | sampling "
        "| top_p | a seed | the seed parameter",
        "set the temperature | get the same answer twice | make answers repeatable "
        "| make it deterministic | use a seed | change the temperature",
        "What does temperature do? | What does temperature 0 mean? | Which temperature is best? "
        "| Why do answers differ? | What does seed do?",
    ),
)

ERRORS = (
    _topic(
        "e429",
        "the status 429",
        "429 means that the server is full: too many requests wait. Retry-After says after how "
        "many seconds to try again.",
        "429 | status 429 | error 429 | a 429 | HTTP 429 | the status 429 | Retry-After "
        "| the Retry-After header | the status code 429 "
        "| status code 429 | 429 errors | the HTTP code 429 | a 429 error "
        "| the error 429 | Too Many Requests",
        "avoid 429 | handle a 429 | deal with 429 | react to error 429",
        "What does 429 mean? | Why do I get 429? | Why did the server answer 429? "
        "| When does the server answer 429? | What should I do on 429? | What does Retry-After "
        "mean? | Why is the server full? | I get error 429 | I got a 429 | why 429",
    ),
    _topic(
        "e503",
        "the status 503",
        "503 means that the server is not ready: the model still loads, or the worker restarts. "
        "/health says which.",
        "503 | status 503 | error 503 | a 503 | HTTP 503 | the status 503 | the status code 503 "
        "| status code 503 | 503 errors | the HTTP code 503 | a 503 error "
        "| the error 503 "
        "| Service Unavailable",
        "avoid 503 | handle a 503 | deal with 503",
        "What does 503 mean? | Why do I get 503? | Why did the server answer 503? "
        "| When does the server answer 503? | I get error 503 | I got a 503 | why 503 "
        "| Why is the server not ready?",
    ),
    _topic(
        "e401",
        "the status 401",
        "401 means that the API key is missing or wrong. Send it as Authorization: Bearer and the "
        "key.",
        "401 | status 401 | error 401 | a 401 | HTTP 401 | the status 401 | the status code 401 "
        "| status code 401 | 401 errors | the HTTP code 401 | a 401 error "
        "| the error 401 "
        "| Unauthorized",
        "avoid 401 | handle a 401 | deal with 401 | fix error 401",
        "What does 401 mean? | Why do I get 401? | Why did the server answer 401? "
        "| When does the server answer 401? | I get error 401 | I got a 401 | why 401 "
        "| Why is my key refused?",
    ),
    _topic(
        "e400",
        "the status 400",
        "400 means that something in the request is wrong. The error names the parameter and says "
        "what is allowed.",
        "400 | status 400 | error 400 | a 400 | HTTP 400 | the status 400 | the status code 400 "
        "| status code 400 | 400 errors | the HTTP code 400 | a 400 error "
        "| the error 400 "
        "| Bad Request",
        "avoid 400 | handle a 400 | deal with 400 | fix error 400",
        "What does 400 mean? | Why do I get 400? | Why did the server answer 400? "
        "| When does the server answer 400? | I get error 400 | I got a 400 | why 400 "
        "| What is wrong with my request?",
    ),
    _topic(
        "e404",
        "the status 404",
        "404 means that there is no such path or no such model. GET /v1/models lists the names "
        "that requests may use.",
        "404 | status 404 | error 404 | a 404 | HTTP 404 | the status 404 | the status code 404 "
        "| status code 404 | 404 errors | the HTTP code 404 | a 404 error "
        "| the error 404 "
        "| Not Found",
        "avoid 404 | handle a 404 | deal with 404 | fix error 404",
        "What does 404 mean? | Why do I get 404? | Why did the server answer 404? "
        "| When does the server answer 404? | I get error 404 | I got a 404 | why 404 "
        "| Why is my model unknown? | Which model names can I use?",
    ),
    _topic(
        "out_of_memory",
        "running out of memory",
        "The server reserves KV cache before it admits a request, so requests cannot run it out of "
        "memory. If a worker still dies, it is restarted.",
        "out of memory | an out of memory error | OOM | CUDA out of memory | a crash",
        "avoid out of memory | prevent OOM | survive a crash",
        "Can it run out of memory? | What happens if the worker dies? | What if a GPU crashes? "
        "| What happens when memory runs out? | Why is there no out of memory error?",
    ),
)

TOPICS: tuple[Topic, ...] = ROUTING + WATCHING + RUNNING + INSIDE + ERRORS

UNKNOWN = (
    "I am only a small demonstration model, so I do not know that. Ask me about this server, or "
    "start it with a real model: --model 20b."
)
"""What the model says to everything else."""

SMALL_TALK: dict[str, tuple[str, tuple[str, ...]]] = {
    "greet": (
        "Hello! I am tiny, the built-in demonstration model. Ask me about this server, for "
        "example: what does route4 mean?",
        _split(
            "Hello | Hello! | Hi | Hi! | Hey | Hey! | Hi there | Hello there! | Good morning "
            "| Good evening | Good afternoon | Good day | Greetings | hello | hi | hey there "
            "| Hello tiny | Hi tiny! | Hello, server! | Hello world | Hey tiny | Howdy | Yo "
            "| Hello, how are you? | Hi, how are you? | Hello, nice to meet you | Nice to meet you "
            "| Hello friend | Hello, model | Hi bot | Hello again | Anyone there? "
            "| Is anybody there? | Are you there? | ping | test | Hello? | Hallo | Salut | Hola"
        ),
    ),
    "how_are_you": (
        "I am fine, thank you. Ask me about this server.",
        _split(
            "How are you? | How are you today? | How do you do? | How is it going? | How's it going? "
            "| What's up? | Are you well? | How do you feel? | how are you | Are you OK? "
            "| Everything all right? | How have you been? | Did you sleep well? | Are you happy?"
        ),
    ),
    "thanks": (
        "You are welcome!",
        _split(
            "Thanks | Thank you | Thank you! | Thanks! | Thanks a lot | Thank you very much "
            "| Many thanks | thanks, that helped | Great, thanks | Good, thank you | thx "
            "| Cool, thanks! | Perfect, thank you | That helped, thanks | Thanks for the help "
            "| Nice, thank you! | Wonderful, thanks | ok thanks | OK, thank you"
        ),
    ),
    "bye": (
        "Goodbye!",
        _split(
            "Bye | Goodbye | Bye! | Goodbye! | See you | See you later | Good night | Bye bye "
            "| See you tomorrow | Farewell | bye tiny | I have to go | That was all, bye "
            "| Until next time | cya | Take care"
        ),
    ),
}
"""Key: the answer, and what people say to get it."""
