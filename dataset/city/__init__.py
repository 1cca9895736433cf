"""A procedural city, written in the layouts of CVUSA, CVACT and VIGOR."""

from .layouts import write_city
from .objects import Building
from .plan import City
from .render import landmark, region_raster, render_aerial, render_ground, stage_raster
from .writing import CityError

__all__ = [
    "Building",
    "City",
    "CityError",
    "landmark",
    "region_raster",
    "render_aerial",
    "render_ground",
    "stage_raster",
    "write_city",
]
