"""The words from which schemas, rows and questions are made.

The plural of every table name is the name with "s", no word is an SQL keyword, and text values are single words. The
pool is small on purpose, so that a tokenizer of a thousand entries keeps most words whole.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableWords:
    """A table and the plain columns it may have."""

    name: str
    texts: tuple[str, ...]
    integers: tuple[str, ...]


def _table(line: str) -> TableWords:
    name, texts, integers = line.split(":")
    return TableWords(name, tuple(texts.split()), tuple(integers.split()))


_DOMAINS = """
label: name city country status: year sales budget
band: name city country genre: year rating sales
singer: name city country language: age height sales rating
album: name genre language style: year price rating length
concert: name city season status: year seats price length

school: name city region category: year rating budget size
teacher: name city subject level: age salary hours
student: name city country level: age score height
course: name subject language level: hours price score
exam: subject level status language: year score hours pages

league: name country level season: year budget rating
team: name city country color: year wins points budget
trainer: name city country language: age salary wins
player: name city country status: age height weight points salary
stadium: name city region color: year seats cost size

supplier: name city country category: rating year cost
store: name city region style: size sales year
product: name color category material: price stock weight
customer: name city country status: age points score
invoice: city country status region: year price cost weight

publisher: name city country language: year sales budget
author: name country language genre: age sales rating
book: name genre language category: year pages price stock
reader: name city country level: age points visits
loan: city status season category: year cost length

airport: name city country region: year seats size
airline: name country color category: year sales rating
plane: name color status material: age seats speed weight
pilot: name city country language: age salary hours
flight: city country season status: price distance seats speed

clinic: name city region category: year budget rating
ward: name color level status: floor size cost
doctor: name city subject level: age salary hours rating
nurse: name city language level: age salary hours
patient: name city country status: age weight height cost

studio: name city country category: year budget sales
director: name country language style: age wins salary
film: name genre language country: year length rating budget
actor: name city country status: age height salary wins
theater: name city style region: year seats price

farm: name region category status: year size budget
farmer: name city region level: age hours salary
field: region season color material: size length cost
crop: name color season category: price weight height
animal: name color category status: age weight speed price

museum: name city country category: year visits budget
exhibit: name style season language: year visits price length
artist: name city country style: age sales rating
painting: name color style material: year price height weight
visitor: name city country language: age visits points

hotel: name city country category: year rating size
manager: name city language level: age salary hours
room: name color style status: floor price size
guest: name city country language: age points visits
booking: season status category country: year price cost length

department: name city region category: floor budget size
office: name city country color: floor size cost
employee: name city level language: age salary hours score
client: name city country status: age sales points
project: name status level season: year budget hours

station: name city region style: year size visits
train: name color category material: age speed seats length
route: name region season status: distance length price
driver: name city level language: age salary hours
ticket: city category color status: year price distance

restaurant: name city region style: year rating seats
chef: name city country level: age salary wins
recipe: name language category season: pages hours rating
meal: name style season category: price cost weight
waiter: name city language status: age salary height hours

dealer: name city country region: year sales rating
garage: name city color category: size cost seats
mechanic: name city level language: age salary hours
car: name color category country: year price speed weight
engine: name material status style: power weight cost

park: name city region category: year size visits
ranger: name city region level: age salary hours
trail: name color region season: length height visits
bridge: name material style status: year length height cost
tree: name season color status: age height weight
"""

DOMAINS = tuple(tuple(_table(line) for line in lines.split("\n")) for lines in _DOMAINS.strip().split("\n\n"))
"""Sixteen domains of five tables each; a table refers only to an earlier one."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TEXT_VALUES: dict[str, tuple[str, ...]] = {
    "name": _words("Alba Boris Clara David Elena Felix Greta Hugo Irene Jonas Karin Leo"),
    "city": _words("Athens Berlin Cairo Lima Oslo Paris Rome Tokyo"),
    "country": _words("Brazil Chile Egypt France India Japan Kenya Spain"),
    "genre": _words("Comedy Drama Fantasy Folk Jazz Mystery Opera Rock"),
    "language": _words("Arabic Dutch English French German Hindi Latin Polish"),
    "level": _words("Basic Expert Junior Master Middle Senior"),
    "subject": _words("Art Biology History Law Math Music Physics"),
    "color": _words("Black Blue Brown Green Orange Purple Red White Yellow"),
    "material": _words("Brick Concrete Glass Metal Stone Wood"),
    "category": _words("Classic Family Luxury Modern Premium Standard"),
    "status": _words("Active Closed New Old Open Pending Ready"),
    "region": _words("Center Coast East North South West"),
    "style": _words("Abstract Baroque Gothic Naive Pop Royal"),
    "season": _words("Autumn Spring Summer Winter"),
}
"""Values of each text column. They repeat within a table, so that groups have several rows."""

_OTHER_INTEGERS = """
budget cost distance height hours length pages points power price rating salary sales score seats size speed stock
visits weight wins
"""
INTEGER_RANGES: dict[str, tuple[int, int]] = {"year": (1980, 2024), "age": (18, 80), "floor": (1, 40)}
INTEGER_RANGES |= dict.fromkeys(_OTHER_INTEGERS.split(), (10, 99))
"""First and last value of each integer column: enough for unique values in a table, so that an order has no ties."""
