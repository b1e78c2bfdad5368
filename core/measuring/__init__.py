"""Objects in numbers: size, shape, brightness and place of every label, for tables of any face.

`sums` adds up runs of pixels, `objects` makes a table of the sums, `table` is that table;
`agreement` paints where two label images agree.
"""

from tttunet.measuring.objects import Grid, measure
from tttunet.measuring.table import Column, ObjectTable

__all__ = ["Column", "Grid", "ObjectTable", "measure"]
