"""The labels that nobody has asked for: two words and a number, such as `quiet-otter-41`, the same ones for the same client.

The words are in order by nothing but the alphabet. Another order, or another word, gives every client another name: leave them as they are.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES: Final = _words("""
able agile airy alert amber ample apt azure balmy blithe bold brave breezy bright brisk bubbly
calm candid cheery chipper clear clever comfy cosmic cosy crafty crisp curious dapper daring dazzling deft
eager early earnest easy elated elegant epic fair fancy festive fine fluent fond frank fresh friendly
gallant generous gentle gifted glad gleaming golden grand grateful handy happy hardy hearty helpful honest humble
ideal jaunty jolly jovial joyful keen kind lively loyal lucid lucky lunar mellow merry mighty mild
mindful modest nifty nimble noble novel patient peaceful perky placid playful pleasant plucky polite prompt proud
quick quiet radiant rapid ready robust rosy serene sharp shiny silver sincere smart snug solar spry
stellar sturdy sunny swift tidy tranquil trusty upbeat valiant velvet vivid warm wise witty zesty zippy
""")
"""128 of them, none of which says anything bad of whatever follows."""

ANIMALS: Final = _words("""
albatross alpaca antelope armadillo avocet axolotl badger barbet beetle bison bittern bluebird bobolink bumblebee bunting bushbaby
butterfly camel canary capybara caribou cheetah chickadee chinchilla chipmunk cicada condor coral cormorant crane cricket curlew
cygnet deer dolphin dormouse dotterel dragonfly dunlin eagle egret eider elk falcon ferret finch firefly flamingo
gannet gazelle gecko gerbil giraffe goldfinch goshawk grebe grouse gull hare harrier hedgehog heron hoopoe hummingbird
ibex ibis iguana impala jackdaw jerboa kestrel kingfisher kinglet kite koala kudu ladybird lapwing lark
lemur leopard linnet lizard llama lobster lynx magpie manatee marmot marten meerkat merlin moose narwhal newt nightingale
ocelot okapi oriole osprey otter owl panda pangolin parrot pelican penguin petrel plover puffin quail quokka
raven reindeer robin salmon sandpiper seahorse seal sparrow starling stoat stork swan tapir tern turtle wren
""")
"""128 of them, none of which is an insult, with any of the words before it."""

_FIRST_NUMBERS: Final = range(10, 100)
_MORE_NUMBERS: Final = range(100, 1000)


def default_labels(user: str, identity: str) -> Iterator[str]:
    """Go through the labels of a client, by its user and identity: the first one is its own, the others are for when that is taken.

    There are 990, and they are the same every time. The words stay, and the number goes up: through all of two digits first, then through all of three.
    """
    parts = (part.encode(errors="surrogatepass") for part in (user, identity))
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    number = int.from_bytes(hashlib.sha256(b"trionat label 1" + message).digest(), "big")
    number, adjective = divmod(number, len(ADJECTIVES))
    number, animal = divmod(number, len(ANIMALS))
    words = f"{ADJECTIVES[adjective]}-{ANIMALS[animal]}"
    for place in chain(_turned(_FIRST_NUMBERS, number), _turned(_MORE_NUMBERS, number)):
        yield f"{words}-{place}"


def default_label(user: str, identity: str) -> str:
    """Return the first of `default_labels`: what a client's name is if nobody else has it."""
    return next(default_labels(user, identity))


def _turned(numbers: range, start: int) -> Iterator[int]:
    """Go through all of them, from a place that `start` chooses."""
    first = start % len(numbers)
    yield from numbers[first:]
    yield from numbers[:first]
