"""Records of scenarios as a page that needs nothing else, and as pictures.

`figures` chooses what a record says, `plots` draws it, `page` and `documents` put it together.
Nothing here measures.
"""
