"""What was said before a turn, and which turns cannot be understood without it."""

import json

import pyarrow as pa
import pytest

from intake import conversation
from mmrlhf_engine._core import read_records

NEED = [
    "And on the right?",
    "What about the dog?",
    "How about the second one?",
    "But why?",
    "So is it open?",
    "Then what happens?",
    "Or the other way round?",
    "Also, who is behind her?",
    "Why?",
    "Why not?",
    "How so?",
    "Which colour?",
    "How many?",
    "Are you sure?",
    "Really?",
    "What else?",
    "On the left?",
    "In the background?",
    "The one on the left?",
    "The left side?",
    "What is it doing?",
    "What color is it?",
    "Is he wearing a hat?",
    "What is she holding?",
    "Are they happy?",
    "Where are they going?",
    "What is his name?",
    "What are its main features?",
    "What does that mean?",
    "Why is this important?",
    "Is that a common practice?",
    "Can you explain this in more detail?",
    "Who lives there?",
    "What do people do there?",
    "What color is the other one?",
    "Which one is larger?",
    "What could be the reason for this?",
    "Can you elaborate on your answer?",
    "How would you describe them?",
    "Tell me more about her.",
    "How old is he?",
    "Does it have a tail?",
    "And the woman?",
    "What are they made of?",
    "Why do you think so?",
    "What is behind it?",
    "Is that normal?",
    "Which of them is the tallest?",
    "Under the table?",
    "Could you say more?",
    "What brand is it?",
    "Who is the other person?",
    "How can this be prevented?",
    "What was her role?",
    "Any animals?",
    "Is it a cat?",
    "How long has he been there?",
    "But what if the light is red?",
    "What makes this special?",
    "Does your answer change if the sky is grey?",
]

STAND_ALONE = [
    "What is the man doing?",
    "What color is the car?",
    "What is in this image?",
    "Describe this picture.",
    "What do you see in the photo?",
    "How many people are there in the image?",
    "Is there a dog in the picture?",
    "Are there any trees?",
    "How many zebras are visible?",
    "What time is it?",
    "Is it raining?",
    "Is it day or night?",
    "What is the weather like?",
    "What is the cat doing and why is it sitting?",
    "Is the woman wearing her glasses?",
    "What does the boy have in his hand?",
    "How many people are there and what are they doing?",
    "What might the man be thinking while he waits for the bus?",
    "Describe the car and its surroundings.",
    "Where is the dog looking?",
    "What does the sign say?",
    "In this image, what is the color of the sky?",
    "Which animal is larger, the cat or the dog?",
    "What is on the other side of the road?",
    "Which of the two dogs is older?",
    "What is the capital of France?",
    "Who painted the Mona Lisa?",
    "Do you think that the man is tired?",
    "What is the name of the animal that is sleeping?",
    "List all objects on the table.",
    "Write a short story about a lonely robot.",
    "Translate the sentence to French.",
    "Why does the sky look blue?",
    "What challenges might skiers face in these conditions?",
    "Based on the image, what season could be shown?",
    "What is the purpose of the red light on top of the building?",
    "Count the bottles on the shelf.",
    "What is the relationship between the two people?",
    "Is the train moving or stopped?",
    "What safety measures should the rider take?",
    "Is the umbrella open?",
    "What is the girl in the red dress holding?",
    "Are the windows closed?",
    "What are the main elements in this photo?",
    "How does the image convey a sense of calm?",
    "What brand is the laptop?",
    "Can you describe the room?",
    "Is there anything unusual about the image?",
    "What kind of event could be taking place?",
    "What skills are needed to ride a skateboard?",
    "Where was the picture taken?",
    "Does the man appear to be enjoying himself?",
    "Why might someone choose to live in a city?",
    "What is the dog carrying in its mouth?",
    "Identify the breed of the horse.",
    "What type of food is on the plate?",
    "Is the street crowded or empty?",
    "How tall is the giraffe compared to the tree?",
    "Solve 3x + 5 = 20.",
    "What is written on the whiteboard?",
]

# Not looked at while the rules were written.
LATER = {
    "What is the woman's expression?": False,
    "Are there more than two boats in the harbor?": False,
    "What is the most prominent object in the image?": False,
    "Is the cat's tail visible?": False,
    "What could have caused the accident?": False,
    "How many wheels does the truck have?": False,
    "Please provide a short description of the given image.": False,
    "What is the man with the backpack looking at?": False,
    "Which country is highlighted in the map?": False,
    "What does the graph say about sales in 2019?": False,
    "Convert 12 miles to kilometers.": False,
    "What letter is on the player's jersey?": False,
    "Is the kitchen clean?": False,
    "What are the benefits of riding a bicycle to work?": False,
    "Who is the author of this book?": False,
    "Explain the joke in the meme.": False,
    "What should a driver do when they see the sign?": False,
    "How does the lighting affect the mood of the scene?": False,
    "What is the total of the receipt?": False,
    "What can be inferred about the weather from the people's clothes?": False,
    "Is it open?": True,
    "What about the other one?": True,
    "Why is he looking up?": True,
    "How can they improve?": True,
    "Do they look happy?": True,
    "And what is next to it?": True,
    "What shape is it?": True,
    "Where is she?": True,
    "In what way?": True,
    "What colour are they?": True,
    "Is there anything else?": True,
    "Could you give an example?": True,
    "What would be a better title for it?": True,
    "Where did this happen?": True,
    "So what should he do?": True,
    "Near the window?": True,
    "Can you name them?": True,
    "Which one?": True,
    "What is the name of his dog?": True,
    "Is that the only reason?": True,
}


def needs(turn):
    """Whether a turn that follows another one is marked."""
    talk = conversation(("Hello.", "Hello, what can I do?"), (turn, "x"))
    record = json.dumps({"conversations": talk}).encode()
    turns, _, _ = read_records(pa.array([record], pa.large_binary()), {}, 1)
    first, second = pa.array(turns).to_pylist()
    assert first["needs_history"] is False
    return second["needs_history"]


@pytest.mark.parametrize("turn", NEED)
def test_a_turn_that_needs_those_before_it(turn):
    assert needs(turn) is True


@pytest.mark.parametrize("turn", STAND_ALONE)
def test_a_turn_that_is_understood_alone(turn):
    assert needs(turn) is False


def test_turns_that_played_no_part_in_the_rules():
    wrong = [turn for turn, expected in LATER.items() if needs(turn) is not expected]
    assert len(wrong) <= 3, wrong
