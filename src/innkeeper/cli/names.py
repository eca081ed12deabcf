"""Readable names for VMs that were given none: `quiet-otter`."""

from __future__ import annotations

import os
from typing import Final

# Short, easy to tell apart and to say; no pair reads badly.
_ADJECTIVES = """
amber agile airy bold brave brisk calm candid civil clear clever cosy crisp deft eager early fair fleet
fond frank free fresh gentle glad golden grand handy happy hardy honest jolly keen kind lively loyal
lucid lucky mellow merry mild modest neat nimble noble plain polite proud quick quiet ready robust round
serene sharp shiny silent sleek smart snug sober spry stable steady sunny swift tidy trim true upbeat
vivid warm wise witty young zesty
"""
_NOUNS = """
acorn alder ant aspen badger beaver bee birch bison brook canyon cedar cliff comet coral crane creek cub
dale deer delta dove dune eagle elk elm falcon fern field finch fir fjord fox gecko glade goose grove
gull  hare harbor hawk heron hill ibis inlet iris island jay lake lark leaf lemur lily linden lynx maple
marten  meadow mesa moose moss newt oak orchid osprey otter owl panda peak pebble pine plover pond poplar
puffin  quail raven reed ridge river robin rowan sage seal shore sparrow spruce squid star stoat stone
stork swan  tern thrush tiger trout tulip valley vole willow wolf wren yak
"""
ADJECTIVES: Final = tuple(_ADJECTIVES.split())
NOUNS: Final = tuple(_NOUNS.split())


def generate() -> str:
    """A random one of about 9,000."""
    return f"{_choice(ADJECTIVES)}-{_choice(NOUNS)}"


def _choice(words: tuple[str, ...]) -> str:
    # The bias of the remainder is far below what matters here, and `random` costs a millisecond to import.
    return words[int.from_bytes(os.urandom(4), "big") % len(words)]
