"""Writes the built-in `tiny` model's tokenizer: byte-level BPE with every harmony special.

Knows: the training text below, how many merges fit beside 256 bytes and 32 specials in 1,024 ids,
and the special tokens' order. Does not know: the model's shape (`config.json` beside the output is
written by hand) nor its weights, which the loader draws from a fixed seed.

Deterministic: the same `tokenizers` release writes the same bytes. Needs no network.

    python tools/build_tiny_tokenizer.py            # rewrites src/gpt_oss_server/models/tiny/
    python tools/build_tiny_tokenizer.py --out DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1024
NAMED_SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|refusal|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
NUM_SPECIALS = 32
DEFAULT_OUT = Path(__file__).parent.parent / "src" / "gpt_oss_server" / "models" / "tiny"

CORPUS = """
You are ChatGPT, a large language model trained by OpenAI. Knowledge cutoff: 2024-06
Current date: 2025-06-28. Reasoning: low. Reasoning: medium. Reasoning: high
# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'.
# Instructions. # Tools. namespace functions { type get_weather = (_: { location: string, }) => any;
system developer user assistant tool analysis commentary final to=functions. to=assistant json
Hello! How are you today? I am fine, thank you. What would you like to know? Please tell me more.
You are a helpful assistant. Answer in one short sentence. Explain it as if I were five years old.
The harbour was quiet in the early morning. Boats lay side by side, and the water between them
held the light of a pale sun. An old man walked along the wall with a basket of bread, and the
gulls followed him, for they knew that he always dropped a little on his way to the market. When
he reached the end of the wall he sat down, took a pencil from his pocket, and wrote the names of
the ships that had come in during the night. He had done this every day for thirty years, and
nobody had ever asked him why.
A computer does what it is told, one step after another, and it does so very quickly. A program is
a list of such steps. If the list is right, the answer is right; if one step is wrong, everything
that follows may be wrong as well. This is why people who write programs test them again and again
with small examples whose answers they already know. A good test fails when something breaks, and
says clearly what it expected and what it found instead.
The server reads a request, counts its tokens, works out how much memory it will need, and decides
where it should run. Short requests go first, because they are soon done; long requests must not
wait for ever, so their turn comes closer with every step. When the memory is full, new requests
stand in a queue, and when the queue is full they are told to come back later. Every answer is sent
token by token, as soon as each token is known, so that the reader never has to wait for the end.
What is the capital of France? The capital of France is Paris. What is two plus two? Two plus two
is four. How many days are there in a year? There are three hundred and sixty-five days, and one
more in every fourth year. Which is the largest planet? Jupiter is the largest planet of our solar
system. Who wrote this book? I do not know who wrote it, but I can help you to find out.
First, heat the oven. Then mix flour, sugar, butter and eggs in a bowl until the dough is smooth.
Put the dough into a tin, bake it for forty minutes, and let it cool before you cut it. Some people
add apples or cherries, others prefer chocolate. It tastes best with a cup of tea in the afternoon.
In winter the days are short and the nights are long. Snow covers the fields and the roofs of the
houses, children build figures with carrots for noses, and the smoke of many fires hangs over the
village. In spring the ice melts, the river rises, and the first green leaves show themselves on
the branches. Summer brings warm evenings, and autumn brings wind, rain and golden colours.
The user asks for the weather. We need to call the function with the location, then wait for the
result. The user wants a list. We should think about the question, check the numbers, and provide a
short answer. Let me think step by step. That is simple. We can answer directly. However, there is
another way to look at this problem. Therefore the result must be larger than ten. So the final
answer is: yes. I am sorry, but I cannot help with that. Is there anything else I can do for you?
She said that they would meet where the road turns to the left, near the bridge. "It's not far,"
he answered, "and we've got time; I'll be there, don't worry." They're friends who haven't seen
each other since school, and there's much to talk about: work, family, music and places they want
to visit. Between the station and the theatre there was a small shop that sold maps and old books.
def main():
    for i in range(10):
        if i % 2 == 0:
            print(i, end=" ")
        else:
            return None
import json
import os
class Example:
    def __init__(self, name: str, value: int = 0) -> None:
        self.name = name
        self.value = value
{"name": "example", "value": 1, "items": [1, 2, 3], "done": true, "error": null, "type": "object"}
{"location": "San Francisco", "temperature": 20, "unit": "celsius", "properties": {"id": "a1"}}
<html><body><p>text</p></body></html> http://example.com/index.html https://www.example.org/
1 2 3 4 5 6 7 8 9 10 11 12 100 1000 1990 2000 2024 2025 0.5 3.14 50% $10 (a) [b] {c} a/b x = y + z;
Questions about science, history, language and mathematics are answered with examples. Information
is organised in sections; each section has a title, some paragraphs and often a table. The first
column names the thing, the second column gives its size, and the third says what it is used for.
Nothing important should be hidden at the end. Begin with the main point, continue with reasons,
and finish with what the reader can do next. Good writing uses common words and complete sentences.
Every city has its own sound. Some wake slowly with bicycles and bakers, some never sleep at all.
Trains arrive and depart under glass roofs, people carry coffee and newspapers, and above the
streets the windows open one after another. A traveller who listens carefully will remember the
sound long after the pictures have been forgotten, because sound is stored with feeling.
the of and to in is that it was for on are with as his they be at one have this from or had by not
but what some we can out other were all there when up use your how said an each she which do their
time if will way about many then them write would like so these her long make thing see him two has
look more day could go come did number sound no most people my over know water than call first who
may down side been now find any new work part take get place made live where after back little only
round man year came show every good me give our under name very through just form sentence great
think say help low line differ turn cause much mean before move right boy old too same tell does
set three want air well also play small end put home read hand port large spell add even land here
must big high such follow act why ask men change went light kind off need house picture try us
again animal point mother world near build self earth father head stand own page should country
found answer school grow study still learn plant cover food sun four between state keep eye never
last let thought city tree cross farm hard start might story saw far sea draw left late run while
press close night real life few north open seem together next white children begin got walk example
ease paper group always music those both mark often letter until mile river car feet care second
book carry took science eat room friend began idea fish mountain stop once base hear horse cut sure
watch color face wood main enough plain girl usual young ready above ever red list though feel talk
bird soon body dog family direct pose leave song measure door product black short numeral class
wind question happen complete ship area half rock order fire south problem piece told knew pass
since top whole king space heard best hour better true during hundred five remember step early hold
west ground interest reach fast verb sing listen six table travel less morning ten simple several
vowel toward war lay against pattern slow center love person money serve appear road map rain rule
govern pull cold notice voice unit power town fine certain fly fall lead cry dark machine note wait
plan figure star box noun field rest correct able pound done beauty drive stood contain front teach
week final gave green quick develop ocean warm free minute strong special mind behind clear tail
produce fact street inch multiply nothing course stay wheel full force blue object decide surface
deep moon island foot system busy test record boat common gold possible plane instead dry wonder
laugh thousand ago ran check game shape equate hot miss brought heat snow tire bring yes distant
fill east paint language among request requests memory token tokens model models server function
functions question questions
"""


def build_tokenizer() -> Tokenizer:
    """Trains the tokenizer: ids 0–255 are bytes, then merges, then the 32 specials up to 1,023."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - NUM_SPECIALS,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    specials = list(NAMED_SPECIALS)
    specials += [f"<|reserved_{n}|>" for n in range(NUM_SPECIALS - len(NAMED_SPECIALS))]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"expected {VOCAB_SIZE} tokens, got {tokenizer.get_vocab_size()}")
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"wrote {out / 'tokenizer.json'}: {VOCAB_SIZE} tokens")


if __name__ == "__main__":
    main()
