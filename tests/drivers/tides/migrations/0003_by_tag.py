from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations


class Migration(migrations.Migration):
    # CREATE INDEX CONCURRENTLY runs in no transaction block.
    atomic = False
    dependencies = [("tides", "0002_opened")]

    operations = [AddIndexConcurrently("Boat", GinIndex(fields=["tags"], name="boats_by_tag"))]
