"""Looking at a sweep: a map of its models, and all of the one that is picked (`toykern explore STORE`).

`atlas` and `model` say what is shown, `axis` how points of a grid lie on a map; they know of no browser.
`view` and `server` show it with Bokeh, `still` in one figure.
"""

from toykern.explorer.atlas import Atlas, Map, View
from toykern.explorer.model import Details
from toykern.explorer.still import figure_of

__all__ = ["Atlas", "Details", "Map", "View", "figure_of"]
