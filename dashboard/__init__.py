"""The Streamlit dashboard: pages that lay out what plain, typed functions have found.

``queries`` reads the store, ``series`` puts requests on a time axis, ``charts`` draws them; none of
the three knows Streamlit. ``cached`` remembers them for the pages, ``server`` serves the pages.
"""
