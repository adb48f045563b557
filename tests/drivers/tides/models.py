"""Owns: the tables that django_check.py works on. Never: a connection."""

from uuid import uuid4

from django.contrib.postgres.fields import ArrayField, IntegerRangeField
from django.contrib.postgres.indexes import GinIndex
from django.db import models


class Harbour(models.Model):
    name = models.CharField(max_length=40, unique=True)
    depth = models.DecimalField(max_digits=8, decimal_places=3, default=0)
    opened = models.DateField(null=True)


class Sailor(models.Model):
    name = models.CharField(max_length=40)
    age = models.PositiveSmallIntegerField()

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(age__lt=120), name="not_too_old")]


class Boat(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid4)
    name = models.CharField(max_length=40)
    harbour = models.ForeignKey(Harbour, models.CASCADE, related_name="boats")
    crew = models.ManyToManyField(Sailor, related_name="boats")
    tags = ArrayField(models.TextField(), default=list)
    log = models.JSONField(default=dict)
    draught = IntegerRangeField(null=True)
    seen = models.DateTimeField(null=True)
    chart = models.BinaryField(default=b"")
    trip = models.DurationField(null=True)

    class Meta:
        indexes = [GinIndex(fields=["tags"], name="boats_by_tag")]
        constraints = [models.UniqueConstraint(fields=["harbour", "name"], name="one_of_a_name")]
