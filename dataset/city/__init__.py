"""A procedural city, written in the layouts of CVUSA, CVACT and VIGOR."""

from .layouts import write_city
from .map import City
from .render import region_raster, render_aerial, render_ground

__all__ = ["City", "region_raster", "render_aerial", "render_ground", "write_city"]
