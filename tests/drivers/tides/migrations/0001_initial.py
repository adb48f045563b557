import uuid

import django.contrib.postgres.fields
import django.contrib.postgres.fields.ranges
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            "Harbour",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=40, unique=True)),
                ("depth", models.DecimalField(max_digits=8, decimal_places=3, default=0)),
            ],
        ),
        migrations.CreateModel(
            "Sailor",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=40)),
                ("age", models.PositiveSmallIntegerField()),
            ],
        ),
        migrations.CreateModel(
            "Boat",
            [
                ("id", models.UUIDField(primary_key=True, default=uuid.uuid4, serialize=False)),
                ("name", models.CharField(max_length=40)),
                ("harbour", models.ForeignKey("tides.Harbour", django.db.models.deletion.CASCADE, related_name="boats")),
                ("crew", models.ManyToManyField("tides.Sailor", related_name="boats")),
                ("tags", django.contrib.postgres.fields.ArrayField(models.TextField(), default=list)),
                ("log", models.JSONField(default=dict)),
                ("draught", django.contrib.postgres.fields.ranges.IntegerRangeField(null=True)),
                ("seen", models.DateTimeField(null=True)),
                ("chart", models.BinaryField(default=b"")),
                ("trip", models.DurationField(null=True)),
            ],
        ),
    ]
