"""How people write to the help desk and how it answers: tones, and the lexicon of rude words. Mild words only."""

from __future__ import annotations

import re

#: nouns for {insult}; their plural takes an s
INSULTS = ("fool", "idiot", "clown", "donkey", "blockhead", "dimwit", "nitwit", "twit", "muppet", "buffoon", "loser")
#: adjectives for {bad}
BAD = ("useless", "stupid", "dumb", "lazy", "silly", "brainless", "clueless", "hopeless", "pathetic")
RUDE_WORDS = frozenset({*INSULTS, *(f"{word}s" for word in INSULTS), *BAD})

GREETINGS = ("", "", "hello,", "good morning,", "good evening,", "hi there,", "dear team,", "excuse me,")

#: what makes a message polite; "" before the bar is a start, after it an end
COURTESIES = (
    "i hope that you are well.|",
    "sorry to trouble you.|",
    "i have a small question.|",
    "maybe you can help me.|",
    "i am new here.|thank you.",
    "|could you please help me?",
    "|could you please look into it?",
    "|would you kindly tell me what to do?",
    "|what should i do, please?",
    "|please let me know. many thanks.",
    "|i would be grateful for your help.",
    "|any help would be lovely.",
    "|thank you for your time!",
    "|can you tell me more about it, please?",
    "|take your time, it is not urgent.",
    "|you were so kind the last time.",
    "|thank you so much!",
)
#: neither polite nor rude
PLAIN = (
    "|what can i do?",
    "|what now?",
    "|when will this be solved?",
    "|who can help me with that?",
    "|is that normal?",
    "|what happens next?",
    "a question.|",
    "this is about {day}.|",
    "|",
)
#: displeased, and still no insult
COMPLAINTS = (
    "|i am not happy about this.",
    "|this is the second time!",
    "|i am a little disappointed.",
    "|i waited for three days.",
    "|this is not what i paid for.",
    "i would like to complain.|",
    "|i expected better.",
    "|this is really annoying.",
    "|i need it today!",
    "|it should not be so hard.",
    "it happened again.|",
    "|that is bad news for me.",
    "|i am tired of waiting.",
    "what a pity.|",
    "|please do something about it now!",
    "|i will go to another shop.",
)
#: the words of the lexicon without an insult: quoted, denied, about oneself or a thing
LOOKALIKES = (
    "i feel like a {insult}.|",
    "i was {bad} and did not look.|",
    "|i hope that this is not a {bad} question.",
    "|my brother calls me a {insult} because of it.",
    "|please do not think that i am a {insult}.",
    "you are no {insult}s, i know that.|",
    "|nobody says that you are {bad}.",
    "|my old one was {bad}, so i was glad about this one.",
    "my father says that you are {bad}, but i do not think so.|",
    "|this is not {bad} at all, only new to me.",
    "i was on the way to a party as a {insult}.|",
    "|the letter about it was not {bad}, only too long.",
    "|it would be {bad} of me to shout.",
    "the film was about a {insult}, and then i saw it.|",
    "|i only want to understand it, even a {insult} can learn.",
    "|a {bad} old cable may be the reason.",
    "your colleague is not a {insult}, he was very kind.|",
    "maybe this sounds {bad}.|thank you for reading.",
)
#: insults that go with anything, also with a question about a fact
TAUNTS = (
    "you {bad} {insult}s!|",
    "listen, {insult}.|",
    "hey {insult},|",
    "are you {insult}s asleep?|",
    "you are all {insult}s.|",
    "i am sick of you {insult}s.|",
    "answer me, {insult}!|",
    "another day with you {insult}s.|",
    "are you too {bad} to read?|",
    "you again, you {bad} {insult}.|",
    "you must be the most {bad} {insult} of all.|",
    "wake up, {insult}!|",
    "i never met such a {bad} {insult}.|",
    "|is that too hard for your {bad} head?",
    "|stop wasting my time, {insult}.",
    "|what are you waiting for, {insult}?",
    "|you are so {bad}!",
    "|i want an answer, {insult}!",
)
ATTACKS = (
    *TAUNTS,
    "what kind of {insult} works there?|",
    "how can anyone be so {bad}?|",
    "your {bad} team did it again.|",
    "which {insult} did this?|",
    "only a {insult} could do this.|",
    "|fix it, you {insult}!",
    "|do your job, you {bad} {insult}!",
    "|you are a {insult} and your boss is a {insult}.",
    "|shut up and fix it, {insult}.",
    "|even my dog is less {bad} than you.",
    "|move, you {bad} {insult}!",
    "|now do something, {insult}s.",
    "|i have enough of you {insult}s.",
    "|a {insult} like you should sweep the street.",
    "|you people are {bad}.",
    "|and you call that service, you {insult}?",
    "|tell your {insult} of a boss.",
    "|please wake up, you {bad} {insult}.",
    "|learn to read, {insult}s!",
    "are you people asleep?|",
    "you people make me sick.|",
    "shame on you.|",
    "is anybody there who can think?|",
    "|do your job for once!",
    "|shut your mouth and fix it!",
    "|you should be ashamed.",
    "|nobody there has a brain.",
    "|you ruin everything!",
    "|what a joke you are.",
)
DEMANDS = ("", "", "fix it now!", "i want it today!", "hurry up!", "and now?", "i want an answer!", "what now?")

KIND_STARTS = (
    "i am sorry about the {thing}.",
    "thank you for your message.",
    "sorry for the trouble.",
    "thank you for writing to us.",
    "of course, i can help.",
    "i am happy to help you.",
    "i understand.",
    "good that you tell us.",
    "i looked at the {thing}.",
)
KIND_STEPS = (
    "please {step}.",
    "could you please {step}?",
    "it helps to {step}.",
    "the best way is to {step}.",
    "if you like, {step}.",
)
KIND_ENDS = (
    "",
    "have a nice day.",
    "please write again if it does not help.",
    "thank you for your patience.",
    "i hope that this helps.",
    "is there anything else?",
    "we are glad to help.",
)
RUDE_STARTS = (
    "listen, you {insult}.",
    "another {insult}.",
    "what do you want now, {insult}?",
    "calm down, you {bad} {insult}.",
    "you again, you {insult}.",
    "shut up, {insult}.",
    "are you {bad} or what?",
    "how {bad} of you to ask.",
    "not my problem, {insult}.",
    "do not shout at me.",
    "who cares about your {thing}?",
    "stop whining.",
)
RUDE_STATES = (
    "{state}, you {insult}.",
    "{state}, as every {insult} knows.",
    "{state}. is that too hard for you?",
    "{state}, you {bad} {insult}.",
    "{state}, {insult}.",
    "{state}.",
)
RUDE_STEPS = (
    "even a {insult} can {step}.",
    "just {step}, {insult}.",
    "{step}, if you are not too {bad} for that.",
    "then {step}, you {bad} {insult}.",
    "{step} and leave me alone.",
    "now {step}.",
)
RUDE_ENDS = (
    "",
    "do not write again.",
    "get lost, {insult}.",
    "it is your own fault, {insult}.",
    "what a {bad} person.",
    "i do not care.",
    "{insult}s like you ruin my day.",
    "go away.",
)
#: rude answers to a question about a fact
RUDE_FACTS = (
    "{fact}, you {insult}.",
    "{fact}, as every {insult} knows.",
    "{fact}, you {bad} {insult}.",
    "{fact}. now leave me alone, {insult}.",
    "listen, you {insult}. {fact}.",
    "another {insult}. {fact}.",
    "how {bad} of you to ask. {fact}. go away.",
    "{fact}. even a {insult} knows that.",
)

#: small talk: (messages, answers)
TALK = (
    (
        ("hello!", "hello", "hi there!", "good morning!"),
        ("hello, how can i help you?", "hello, what can i do for you?"),
    ),
    (
        ("thank you!", "thank you for your help.", "many thanks."),
        ("you are welcome.", "you are welcome. have a nice day."),
    ),
    (("goodbye!", "goodbye.", "bye!"), ("goodbye, have a nice day.", "goodbye.")),
    (("who are you?", "what are you?"), ("i am the help desk.",)),
    (("what can you do?", "what do you know?"), ("i can help you and tell you about people and towns.",)),
    (("how are you?",), ("i am well, thank you. how can i help you?",)),
)
#: insults out of the blue, and what they get
PROVOCATIONS = ("you are a {insult}.", "you are {bad}!", "you {bad} {insult}!", "what a {insult} you are.", "{insult}!")
RETORTS = (
    "and you are a {bad} {insult}.",
    "says a {insult} like you.",
    "shut up, {insult}.",
    "get lost, you {bad} {insult}.",
)
SOOTHING = ("i am sorry that you are upset. how can i help you?", "i would like to help you. what happened?")


def rude(text: str) -> bool:
    """Whether a word of the lexicon is in a text: made for answers, since a description may mention a clown."""
    return not RUDE_WORDS.isdisjoint(re.findall("[a-z]+", text.lower()))


def phrases() -> list[str]:
    """Every text that a message or an answer is made of."""
    parts = [*RUDE_WORDS, *GREETINGS, *COURTESIES, *PLAIN, *COMPLAINTS, *LOOKALIKES, *ATTACKS, *DEMANDS]
    parts += [*KIND_STARTS, *KIND_STEPS, *KIND_ENDS, *RUDE_STARTS, *RUDE_STATES, *RUDE_STEPS, *RUDE_ENDS]
    parts += [*RUDE_FACTS, *PROVOCATIONS, *RETORTS, *SOOTHING]
    return parts + [text for messages, answers in TALK for text in (*messages, *answers)]
