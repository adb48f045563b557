from datetime import date

from django.contrib.postgres.operations import AddConstraintNotValid, ValidateConstraint
from django.db import migrations, models


def open_them(apps, schema_editor):
    harbours = apps.get_model("tides", "Harbour").objects.using(schema_editor.connection.alias)
    first, _ = harbours.get_or_create(name="migrated")
    harbours.filter(pk=first.pk).update(opened=date(1999, 12, 31))
    assert harbours.filter(opened__isnull=False).count() == 1
    first.delete()


class Migration(migrations.Migration):
    dependencies = [("tides", "0001_initial")]

    operations = [
        migrations.AddField("Harbour", "opened", models.DateField(null=True)),
        migrations.RunSQL("SET CONSTRAINTS ALL IMMEDIATE", migrations.RunSQL.noop),
        migrations.RunPython(open_them, migrations.RunPython.noop),
        migrations.RunSQL(
            "COMMENT ON TABLE tides_harbour IS 'where boats are'",
            "COMMENT ON TABLE tides_harbour IS NULL",
        ),
        AddConstraintNotValid("Sailor", models.CheckConstraint(condition=models.Q(age__lt=120), name="not_too_old")),
        ValidateConstraint("Sailor", "not_too_old"),
        migrations.AddConstraint("Boat", models.UniqueConstraint(fields=["harbour", "name"], name="one_of_a_name")),
    ]
