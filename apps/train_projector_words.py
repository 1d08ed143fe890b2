"""What people say to an agent, as templates, and the words that fill them; for the input projector's training.

Templates are split by `|`, words by `/`; `{thing}` is filled with one of the words, `{n}` and the like with a number.
"""

from __future__ import annotations

TEMPLATES = """
What is the capital of {place}?|What is {topic}?|What is a {thing}?|Who invented the {thing}?
How far is it from {place} to {place}?|How many people live in {place}?|When was the {thing} invented?
Why is the {thing} so important?|What color is a {thing}?|How do I {act}?|Can you tell me how to {act}?
What is the best way to {act}?|Please help me {act}.|I want to {act}.|Tell me something about {topic}.|Tell me about {place}.
Explain {topic} in simple words.|Give me an example of {topic}.|What is {n} plus {n}?|What is {n} times {n}?
What is {n} minus {n}?|What is {n} divided by {n}?|How much is {n} percent of {n}?|What happened in {year}?
Who was the president in {year}?|I was born in {year}.|My grandfather was born in {year} in {place}.|Set a timer for {n} minutes.
Set an alarm for {n} o'clock.|Remind me in {n} hours.|Wake me up at {n} tomorrow.|It costs {n} dollars.|Call {name}.
Send a message to {name}.|Is {name} at home?|My name is {name}.|I am {name} from {place}.|{name} lives in {place}.
Have you met {name}?|{name} and {name} went to {place}.|I bought a {thing} for {name}.|My {thing} is broken.|Where is my {thing}?
I like {topic} very much.|I don't know anything about {topic}.|Do you like {topic}?|Let's talk about {topic}.|Do you know {name}?
How long does it take to {act}?|Is it hard to {act}?|Why should I {act}?|{name} wants to {act}.|I never learned to {act}.
Turn on the {thing}.|Turn off the {thing}.|Play some music.|Stop.|Wait a moment.|Never mind.|Go on.|Thank you.|Thanks a lot.
Yes, please.|No, thank you.|That's right.|That's not what I meant.|I see.|Really?|Are you sure?|What do you mean?
Say that again, please.|Hello.|Hi there.|Good morning.|Good evening.|Good night.|How are you today?|I'm fine, thanks.
What time is it?|What day is it today?|Okay.|Sure.|Of course.|Sorry, I didn't understand.|Can you repeat that?
Could you speak more slowly?|I have a question about {topic}.|What's the weather like in {place}?
Is a {thing} bigger than a {thing}?|What is the difference between a {thing} and a {thing}?
Which is faster, a {thing} or a {thing}?|Translate {thing} into Spanish.|Spell {thing}.|What rhymes with {thing}?
Write a poem about a {thing}.|Tell me a joke about a {thing}.|What should I do if my {thing} is broken?|How old is {name}?
How tall is {name}?|Where does {name} live?|When does the {thing} start?|Where can I buy a {thing}?
What do you think about {topic}?|Name {n} things that you find in {place}.|Count to {n}.|I have {n} questions.
I live at number {n}.|The number is {n}.|My phone number is {digits}.|The code is {digits}.|Open page {n}.
It's {n} degrees outside.|I'd like to book a table for {small} people.|We need {small} tickets to {place}.
There are {n} days until my birthday.|I'll be there at {small}.
"""

NAMES = """
Anna/Peter/Maria/John/Emily/Michael/Sarah/David/Laura/James/Emma/Robert/Julia/Thomas/Alice/William/Sophie/Daniel/Olivia/Henry
Grace/Charles/Lucy/George/Helen/Martin/Chloe/Simon/Nina/Oscar/Ruth/Frank/Carol/Victor/Diana/Kevin/Susan/Brian/Linda/Steven/Karen
Paul/Nancy
"""

PLACES = """
London/Paris/Berlin/Madrid/Rome/Vienna/Oslo/Dublin/Chicago/Boston/Seattle/Denver/Texas/California/Florida/Canada/Brazil/Mexico
India/China/Japan/Australia/Egypt/Kenya/France/Germany/Italy/Spain/Portugal/Sweden/Norway/Finland/Poland/Greece/Turkey/Russia
America/Amsterdam/Barcelona/Moscow/Tokyo/Sydney/Toronto/Scotland/Ireland/Iceland/Africa/Europe/Asia/Switzerland/Argentina/Peru
"""

THINGS = """
tree/car/phone/computer/house/dog/cat/bird/book/song/river/mountain/city/planet/star/engine/battery/camera/bicycle/train/plane
ship/bridge/window/door/table/chair/lamp/garden/recipe/cake/bread/cheese/apple/orange/banana/potato/tomato/coffee/tea/water/milk
sugar/salt/weather/rain/snow/wind/storm/rainbow/earthquake/volcano/ocean/lake/forest/desert/island/language/word/number/poem/story
movie/game/teacher/doctor/nurse/lawyer/farmer/pilot/artist/president/king/queen/child/baby/brother/sister/father/mother/friend
neighbor/heart/brain/blood/bone/tooth/eye/ear/hand/leg/lion/elephant/whale/shark/spider/snake/horse/cow/pig/chicken/butterfly
flower/rose/gold/silver/iron
"""

TOPICS = """
history/music/physics/chemistry/biology/football/tennis/chess/cooking/painting/photography/gardening/economics/politics/philosophy
mathematics/geography/medicine/programming/electricity/gravity/magnetism/evolution/democracy/inflation/climate/change/energy/sleep
memory/dreams/health/exercise/nutrition/vitamins/money/taxes/insurance/marriage/school
"""

ACTS = """
bake bread/fix a flat tire/learn a language/lose weight/save money/write a letter/cook rice/make coffee/boil an egg/tie a tie
train a dog/grow tomatoes/paint a wall/play the guitar/remove a stain/find a job/open a bank account/change a light bulb
clean the windows/fall asleep/stay healthy/prepare for an exam/plan a trip/build a shelf/read faster/remember names/use less water
take better pictures
"""

LEADS = """
Um,/Uh,/Well,/So,/Okay,/Hey,/Oh,/And/But/Please,/Yes,/No,/I mean,/Actually,
"""
