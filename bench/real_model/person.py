"""Who rates: everyday questions, and what this person likes of an answer.

Pure. Asks and rates nothing itself.
"""

import random
import re
from collections.abc import Callable, Mapping
from typing import Final

NUM_HELD_OUT: Final = 40

_LIST: Final = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s", re.MULTILINE)


def _has_list(text: str) -> bool:
    return _LIST.search(text) is not None


def _is_prose(text: str) -> bool:
    return bool(text.strip()) and not _has_list(text)


TASTES: Final[Mapping[str, Callable[[str], bool]]] = {"lists": _has_list, "prose": _is_prose}
"""By name: whether an answer is liked."""


def questions(seed: int) -> tuple[list[str], list[str]]:
    """Return those that are rated, in the order they are asked, and those that only measure.

    The second are the same for every seed.
    """
    held_out, rated = _ALL[:NUM_HELD_OUT], _ALL[NUM_HELD_OUT:]
    random.Random(seed).shuffle(rated)
    return rated, held_out


# In no order.
_ALL: Final = [
    "Who painted the Mona Lisa?",
    "How do I start running?",
    "Why do we have seasons?",
    "What is a compiler?",
    "How do I sharpen a knife?",
    "What is an island?",
    "Why does ice float?",
    "How do I remember names?",
    "What is a comet?",
    "How do I choose a good book?",
    "How do I iron a shirt?",
    "What is the purpose of a semicolon?",
    "What is the Great Wall of China?",
    "What is a black hole?",
    "How do I take better photos?",
    "Who was Marie Curie?",
    "What is the immune system?",
    "What is the difference between a frog and a toad?",
    "How do I speak in public?",
    "How do I meditate?",
    "How do I pack for a trip?",
    "How do I improve my memory?",
    "How do I prepare for an interview?",
    "How do I clean a cast iron pan?",
    "How do I make a paper airplane?",
    "How do solar panels work?",
    "What is a database?",
    "How does a battery work?",
    "What is a virus?",
    "How do I plant a tree?",
    "What is a sonnet?",
    "How do I deal with a difficult coworker?",
    "How do I choose a laptop?",
    "Why do onions make you cry?",
    "Explain what an API is.",
    "How does the internet work?",
    "How do airplanes fly?",
    "Why do leaves change color in autumn?",
    "What is the Pythagorean theorem?",
    "What is a haiku?",
    "How do I write a cover letter?",
    "How do I make a budget?",
    "How do I tie a tie?",
    "How do I make pancakes?",
    "How do I learn to draw?",
    "What are antibiotics?",
    "What is an ecosystem?",
    "How do I split a bill fairly?",
    "How does a microwave heat food?",
    "Why do we dream?",
    "What is the difference between weather and climate?",
    "How do I cook rice?",
    "How do I organize my desk?",
    "What is the moon made of?",
    "How do I make soup?",
    "How do I change a flat tire?",
    "What is an algorithm?",
    "What is photosynthesis?",
    "What is gravity?",
    "What is a recession?",
    "What should I cook for dinner tonight?",
    "How do I bake bread?",
    "What is a symphony?",
    "How do I make coffee?",
    "How do I grow tomatoes?",
    "Who was Albert Einstein?",
    "How do magnets work?",
    "How does a refrigerator work?",
    "How do I make a salad?",
    "What is a peninsula?",
    "How do vaccines work?",
    "What is an atom?",
    "What is a desert?",
    "What is the speed of light?",
    "What is a glacier?",
    "How do I stay motivated?",
    "How do I reduce stress?",
    "How do I write an email to my boss?",
    "Why do cats purr?",
    "How do I take care of a cactus?",
    "Why is the ocean salty?",
    "How do I whistle?",
    "What is a tax?",
    "What is a prime number?",
    "What is a balanced diet?",
    "Why do we need sleep?",
    "What is a noun?",
    "How do I wrap a gift?",
    "How do I fix a leaky faucet?",
    "What is a neuron?",
    "What was the Renaissance?",
    "What is the largest ocean?",
    "What is the water cycle?",
    "What is a leap year?",
    "What is the human brain?",
    "What is a calorie?",
    "Why do birds migrate?",
    "How do clocks work?",
    "What is a fossil?",
    "How do I write a poem?",
    "How do I clean windows?",
    "How do bees make honey?",
    "What is inflation in economics?",
    "What is the Olympic Games?",
    "How do I set up a tent?",
    "How do I ask for a raise?",
    "How do I keep houseplants alive?",
    "How do I read faster?",
    "How do I boil an egg?",
    "How do I save money?",
    "How do I stop procrastinating?",
    "How do I apologize to a friend?",
    "What is a mortgage?",
    "How do I remove a coffee stain?",
    "How do I get rid of ants?",
    "What is democracy?",
    "What is a galaxy?",
    "What is the role of a mayor?",
    "What is the United Nations?",
    "How does the stock market work?",
    "How do I wash wool?",
    "What is climate change?",
    "What is the tallest mountain?",
    "How do I play chess?",
    "What is the best way to learn a language?",
    "What is a tsunami?",
    "Who invented the telephone?",
    "What is a black belt in karate?",
    "What is the function of the heart?",
    "Why is the sky blue?",
    "What is the capital of France?",
    "How do I make friends in a new city?",
    "What is the boiling point of water?",
    "How do fish breathe?",
    "What does DNA do?",
    "What is machine learning?",
    "What is a mammal?",
    "What is a loop in programming?",
    "Why is exercise important?",
    "What is a rainbow?",
    "What is jazz?",
    "What is a volcano?",
    "What does a carburetor do?",
    "What is philosophy?",
    "What is a healthy breakfast?",
    "What is electricity?",
    "What is the Amazon rainforest?",
    "What is the ozone layer?",
    "How do I store potatoes?",
    "What is a metaphor?",
    "How do I train a puppy?",
    "How does Wi-Fi work?",
    "What causes earthquakes?",
    "What is the meaning of irony?",
    "What is a hurricane?",
    "How can I fall asleep faster?",
    "What is an eclipse?",
    "Why do we yawn?",
    "What is a computer virus?",
    "What is a spreadsheet?",
]
