"""What people write to the help desk about, and what it can say: ten topics, in plain words without a tone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Phrases about one topic, with {thing} and {day}.

    Attributes:
        things: names of what it is about; they fit after "my" and "the".
        problems: clauses of the person who writes.
        states: clauses that say how things stand.
        steps: what to do, as an order.
    """

    things: tuple[str, ...]
    problems: tuple[str, ...]
    states: tuple[str, ...]
    steps: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "parcel": Topic(
        ("parcel", "package", "delivery"),
        (
            "my {thing} has not arrived",
            "the driver left my {thing} in the rain",
            "my {thing} went to the wrong house",
            "my {thing} came with a hole in the box",
            "half of my {thing} is missing",
            "nobody rang the bell when my {thing} came",
            "i have waited for my {thing} since {day}",
            "someone else signed for my {thing}",
        ),
        (
            "the {thing} will come on {day}",
            "the {thing} is still in the van",
            "the {thing} went back to the shop on {day}",
            "the {thing} is at the post office",
            "the driver has the wrong address for the {thing}",
        ),
        (
            "check the number on the card",
            "stay at home on {day}",
            "write the address on the form",
            "ask the neighbour on the left",
            "fetch it at the post office",
        ),
    ),
    "invoice": Topic(
        ("invoice", "bill", "receipt"),
        (
            "my {thing} has the wrong amount",
            "i was charged twice on my {thing}",
            "my {thing} is for another customer",
            "there is a fee on my {thing} that i do not know",
            "i paid my {thing} and got a reminder",
            "my {thing} never came in the post",
            "the tax on my {thing} is too high",
            "i cannot read the date on my {thing}",
        ),
        (
            "the {thing} was corrected on {day}",
            "the amount on the {thing} is right",
            "the money will be back by {day}",
            "the bank has not sent the payment for the {thing}",
            "the fee on the {thing} is for the late payment",
        ),
        (
            "read the second page",
            "send a copy of the {thing}",
            "pay the rest by {day}",
            "call the bank",
            "look at the number at the top",
        ),
    ),
    "password": Topic(
        ("password", "account", "login"),
        (
            "my {thing} does not work",
            "i forgot my {thing}",
            "someone changed my {thing}",
            "my {thing} is locked since {day}",
            "the page does not take my {thing}",
            "i get no letter for my new {thing}",
            "my {thing} was deleted",
            "the link for my {thing} is dead",
        ),
        (
            "the {thing} was locked after ten wrong tries",
            "a new {thing} will be sent by {day}",
            "the {thing} works again since {day}",
            "the {thing} needs a longer word",
            "the page for the {thing} is down until {day}",
        ),
        (
            "type the code from the letter",
            "choose a longer word",
            "close the window and start again",
            "use the new link",
            "look into the other mailbox",
        ),
    ),
    "heating": Topic(
        ("heating", "heater", "boiler"),
        (
            "my {thing} is cold",
            "my {thing} makes a loud noise",
            "water drips from my {thing}",
            "my {thing} stopped on {day}",
            "my {thing} smells of smoke",
            "i cannot turn off my {thing}",
            "the man who came for my {thing} left it open",
            "my {thing} only works at night",
        ),
        (
            "the {thing} will be repaired on {day}",
            "the part for the {thing} will be here on {day}",
            "the {thing} has air in the pipes",
            "the {thing} was set too low",
            "the plumber for the {thing} is ill until {day}",
        ),
        (
            "turn the red wheel to the right",
            "let the air out of the pipes",
            "fill in some water",
            "open the door on {day}",
            "switch it off for an hour",
        ),
    ),
    "booking": Topic(
        ("booking", "room", "reservation"),
        (
            "my {thing} was cancelled",
            "my {thing} is for the wrong night",
            "my {thing} was given to someone else",
            "i need my {thing} one day later",
            "the hotel does not know my {thing}",
            "my {thing} has no window",
            "i paid for my {thing} and got no answer",
            "my {thing} is next to the lift",
        ),
        (
            "the {thing} is safe until {day}",
            "the {thing} was moved to {day}",
            "the {thing} was not paid in time",
            "another {thing} is free on {day}",
            "the hotel has the {thing} under another name",
        ),
        (
            "show the paper at the desk",
            "choose another night",
            "confirm it before {day}",
            "ask for the keys at the desk",
            "bring the passport",
        ),
    ),
    "internet": Topic(
        ("internet", "router", "line"),
        (
            "my {thing} is slow",
            "my {thing} is down since {day}",
            "my {thing} stops every hour",
            "my {thing} only works in the kitchen",
            "my {thing} has a red light",
            "i pay for a fast {thing} and it is not fast",
            "nobody came to set up my {thing}",
            "my {thing} broke in the storm",
        ),
        (
            "the {thing} will be back on {day}",
            "the cable of the {thing} is broken in the street",
            "the {thing} is too far from the window",
            "the {thing} gets a new part on {day}",
            "the {thing} is fine on our side",
        ),
        (
            "pull the plug and count to ten",
            "move it to the window",
            "press the small button",
            "wait for the green light",
            "use the long cable",
        ),
    ),
    "ticket": Topic(
        ("ticket", "seat", "train"),
        (
            "my {thing} was sold twice",
            "my {thing} is for the wrong day",
            "i lost the paper for my {thing}",
            "the guard did not accept my {thing}",
            "i missed the bus because of my {thing}",
            "my {thing} was more expensive than the price i saw",
            "my {thing} is in the wrong class",
            "i want to give back my {thing}",
        ),
        (
            "the {thing} is good until {day}",
            "the {thing} was changed to {day}",
            "the {thing} cannot be given back",
            "the price of the {thing} went up on {day}",
            "another {thing} is free in the first class",
        ),
        (
            "show the number to the guard",
            "print it again",
            "take the next bus",
            "go to the counter before {day}",
            "keep the old paper",
        ),
    ),
    "loan": Topic(
        ("book", "card", "film"),
        (
            "my {thing} from the library has lost a page",
            "i brought my {thing} back and still pay for it",
            "the library has given my {thing} to someone else",
            "i cannot find my {thing} on the shelf",
            "the library wants my {thing} back too early",
            "my {thing} got wet on the way home",
            "the library says that my {thing} is too late",
            "i asked the library for my {thing} on {day}",
        ),
        (
            "the library has the {thing} back since {day}",
            "the {thing} is on the upper shelf",
            "the {thing} is with another reader until {day}",
            "the fine for the {thing} is small",
            "the library will keep the {thing} for you until {day}",
        ),
        (
            "put it into the box at the door",
            "ask at the front desk",
            "renew it before {day}",
            "look on the upper shelf",
            "bring the card next time",
        ),
    ),
    "washer": Topic(
        ("washer", "machine", "dryer"),
        (
            "my {thing} leaks on the floor",
            "my {thing} eats my socks",
            "the door of my {thing} does not open",
            "my {thing} jumps through the bathroom",
            "my {thing} turned my shirts pink",
            "my new {thing} has a scratch",
            "my {thing} does not start since {day}",
            "my {thing} is loud like a drum",
        ),
        (
            "the {thing} is under warranty until {day}",
            "a new door for the {thing} will come on {day}",
            "the filter of the {thing} is full",
            "the {thing} does not stand level",
            "the mechanic looks at the {thing} on {day}",
        ),
        (
            "clean the filter",
            "use less soap",
            "put something flat under one foot",
            "close the tap first",
            "read the label on the back",
        ),
    ),
    "lesson": Topic(
        ("lesson", "course", "class"),
        (
            "my {thing} was moved without a word",
            "my {thing} is full",
            "the teacher did not come to my {thing}",
            "my {thing} is too hard",
            "i paid for a {thing} that does not exist",
            "my {thing} is at the same hour as my work",
            "the room of my {thing} was closed on {day}",
            "i did not get the papers for my {thing}",
        ),
        (
            "the {thing} starts again on {day}",
            "the {thing} moved to the big hall",
            "the teacher of the {thing} is ill until {day}",
            "one place in the {thing} is free",
            "the {thing} ends on {day}",
        ),
        (
            "sign the list in the hall",
            "bring the blue book",
            "come ten minutes early on {day}",
            "choose another group",
            "write to the teacher",
        ),
    ),
}
