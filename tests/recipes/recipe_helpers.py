"""Small recipes to write and read."""

from stackbert.recipe import Recipe
from stackbert.recipe_files import parse_recipe

SHIPPED = ["bert-base", "bert-base-gong2019", "bert-large", "demo", "small-cpu"]


def stages(*pairs: tuple[int, int]) -> list[dict[str, int]]:
    return [{"depth": depth, "steps": steps} for depth, steps in pairs]


def parse(**fields: object) -> Recipe:
    return parse_recipe({"name": "test", "stages": stages((2, 10)), **fields}, "my.yaml")


GOOD = "name: test\nstages: [{depth: 2, steps: 10}, {depth: 4, steps: 20}]\n"
