"""What the speakers of built conversations say: sentences with the places at which a speaker may hesitate.

`|` marks such a place, `||` one after a whole sentence that goes on all the same; `{a/b}` is a choice. The two sets share no template, so
a predictor that was taught on the one meets new words in the other.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

Set = Literal["training", "bench"]

TRAINING = """
I would like to | {book/reserve/cancel} a | {table/room/seat} for | {two people/Friday night/my brother}.
Could you please | {play/find/show} me | {some music/a good recipe/the news from today}?
Can you tell me | {where/when} the | {next train/last bus/early flight} | {leaves/arrives}?
I was wondering if | you could | help me with | {my homework/this letter/the garden}.
What I need is | a {new/small/cheap} | {lamp/phone/jacket} that | {fits my desk/works at night/does not cost much}.
My {sister/neighbour/teacher} told me that | the | {shop/museum/school} is | {closed on Monday/very far away/open until nine}.
How do I get from | the {station/airport/hotel} to | the | {river/old town/market}?
The reason why I call is | that my | {computer/washing machine/heating} | {is broken/makes a strange noise/does not start}.
Please remind me to | {call/write to/visit} my | {mother/doctor/friend} | {tomorrow morning/at three o'clock/on my way home}.
I think that | the {red/blue/green} one | looks much better than | the {other one/last one}.
Set {an alarm/a timer} for | {ten minutes/half past six/seven in the morning}.
Do you know | {who wrote/who painted/who made} | {that book/this picture/the first computer}?
When I was in {Italy/Canada/Norway} | we used to | {swim/walk/eat} | {every single day/by the sea/with our friends}.
If it {rains/snows} tomorrow | I will | {stay at home/take the car/read a book}.
Turn {on/off} the | {lights/radio/fan} in the | {kitchen/bedroom/hall}.
We have {three/four/five} children and | a | {dog/cat/bird} called | {Max/Lucy/Bella}.
I am looking for | a word that means | {very happy/not so big/to run away}.
It takes about | {two/three} hours to | drive from | {here to the coast/our house to the lake}.
What is the difference between | a {frog/rabbit} and | a {toad/hare}?
My favourite {food/song/film} is | the one with the | {mushrooms/piano/talking dog}.
Send a message to {Anna/Peter/Maria} and | say that | I will be | {late/there soon/at the office}.
Is there a {pharmacy/bakery/bank} near | the {park/church/library}?
Yesterday I went to | the {dentist/cinema/beach} because | {my tooth hurt/it was raining/we had time}.
Why does the {moon/sun} look | so {big/red} when | it {rises/sets}?
The {second/third} thing I want is | {more time/less noise/a better chair}.
I have a question about | my {bill/order/ticket}. || I paid it | {twice/last week/in cash}.
Something is wrong. || My {screen/door/clock} is | {stuck/black/too slow}.
I like {tea/coffee}. || But in the evening | I prefer | {water/milk/juice}.
There are {two/three} of us. || We would like to | sit {outside/by the window}.
What time is it?
How are you?
Tell me a {joke/story/secret}.
Good {morning/evening}.
What is your name?
{Stop/Play} the music.
I am {tired/hungry/cold}.
It is {raining/late/warm}.
Who won the {game/race}?
Where is {my phone/the key}?
That is {fine/wonderful/enough}.
Call {my mother/a taxi/the office}.
I do not {know/care/agree}.
How {old/tall/deep} is it?
Let us {go/begin/eat}.
Thank you very much.
What does {it/that word} mean?
Yes, {please do/I am sure/of course}.
No, {thank you/not today/I meant the other one}.
Maybe {later/tomorrow}.
{Open/Close} the {window/door}.
How many {people/birds} are there?
What should I {wear/cook/read} {today/tonight}?
Read it {again/to me}.
I will be there at {eight/noon}.
It costs {twenty/forty} dollars.
I live in {London/Boston/a small town}.
My {son/daughter} is {seven/ten} years old.
We are going to {Spain/the lake} {in June/next week}.
"""

BENCH = """
I am trying to | {repair/paint/sell} my | {bicycle/old boat/guitar} before | {the weekend/winter comes}.
Which {road/street} should we | take to reach | the {castle/harbour/stadium}?
Would it be possible to | move our | {meeting/lesson} to | {Thursday/the afternoon}?
My {uncle/grandmother} always says that | a good {soup/garden} needs | {patience/a lot of water}.
Explain to me | how a {clock/volcano/telephone} | {works/is made}.
For dinner we could have | {rice/fish} with | {tomatoes/green beans} and | {a salad/some bread}.
Please write down that | the {plumber/painter} comes on | {Wednesday/the tenth of May}.
How far is it from | {Paris/Berlin} to | the {nearest mountain/Atlantic ocean}?
They want to build | a {bridge/tower} across | the {valley/main square}.
Before you {start/leave} | I need the | {password/address} of | {the new office/your hotel}.
Our {train/plane} was delayed because | of the | {storm/heavy fog}.
I have been thinking about | {learning/teaching} | {Spanish/chess} this | {summer/year}.
She said that | her {suitcase/camera} was | {lost at the border/under the bed}.
The {doctor/lawyer} wants me to | bring my | {papers/insurance card}.
Can I pay with | {a card/cash} or | do you only take | {cheques/coins}?
I saw your advertisement. || Is the {flat/car} still | {available/for sale}?
We moved here last year. || Our {house/street} is | {very quiet/quite narrow}.
What is the weather like?
Who is calling?
Show me the {map/menu}.
I feel {great/sick} today.
When does it {open/end}?
That sounds {perfect/strange}.
Switch off the {heater/oven}.
She has gone {home/away}.
{Nine/Eleven} o'clock is fine.
I forgot {the tickets/my umbrella}.
Where can I buy {stamps/flowers}?
Please speak more slowly.
Which one is {cheaper/faster}?
We need {eggs/more chairs}.
"""

INTERRUPTIONS: dict[Set, str] = {
    "training": """
Stop.
No, no, that is wrong.
Wait a moment.
Hold on, I have another question.
Sorry, can you repeat that?
Okay, but what about {Sunday/the price/my friend}?
Yeah, and how much does it cost?
Right, but I asked for something else.
Excuse me, that is not what I meant.
Let me say something.
Actually, forget it.
Can you speak up?
I know that already.
What do you mean by that?
Tell me about {cats/history/Japan} instead.
No.
Quiet, please.
Oh, I nearly forgot, | call {my brother/the shop}.
Please skip this part.
Hang on a second.
Just a moment.
Pause.
Be quiet.
Enough.
That is not right.
You are wrong about that.
Why is that?
Say that again.
Slow down.
I did not understand that.
How do you know?
Is that true?
When was that?
Go on to the next {one/question}.
Let us change the {subject/topic}.
Hey, listen.
Well, I do not agree.
But I have {seen/heard/tried} it.
So what should I {do/buy/say}?
And what happens then?
Yes, but not {today/here/for me}.
Okay, stop now.
Right, and where is that?
Sure, but first tell me {the price/your name}.
Oh, that reminds me of something.
I see, then what about {him/tomorrow/Monday}?
Good, now {read/open/send} it.
Really, who told you that?
Cool, can you {print/write} that?
Yeah, no, that is something else.
""",
    "bench": """
Wait, stop.
Hold on, what about {Italy/tomorrow}?
That is enough, thanks.
Sure, but is there a shorter way?
Yes, and who was the second?
Sorry, I did not ask for that.
Could you go back a little?
I want to know something else.
Which year was that?
Never mind, let us talk about {music/sports}.
Okay, let me ask you | something different.
No, wait.
""",
}
BACKCHANNELS: dict[Set, str] = {
    "training": "yeah/uh huh/okay/right/I see/sure/wow/oh/yes/oh really/got it/mhm/yep/cool/hm/ah/oh okay/yeah yeah/good"
    "/great/exactly/absolutely/true/interesting/all right/I know/no way/of course/go on/makes sense/fair enough/really/oh no/oh I see"
    "/okay okay/right right/yes yes/very good/lovely/amazing/indeed/good good/sounds good/oh good/oh right/yeah sure/yeah okay/aha",
    "bench": "yeah/uh huh/okay/right/I see/mhm/oh wow/hm/sure/nice",
}
LEADS: dict[Set, str] = {
    "training": "Hi there./Okay so./Well./Listen./Good morning./I have a question./One more thing./Hello./So here is the thing.",
    "bench": "Hello./Right then./Excuse me./Another thing./Okay./Hi, it is me again.",
}
FILLERS = ("um", "uh", "er")


def sentences(which: Set) -> list[str]:
    """The templates of a set."""
    return [line for line in (TRAINING if which == "training" else BENCH).strip().split("\n") if line]


def choose(template: str, rng: np.random.Generator) -> str:
    """A template with its choices made."""
    return re.sub(r"\{([^}]*)\}", lambda match: str(rng.choice(match[1].split("/"))), template)
