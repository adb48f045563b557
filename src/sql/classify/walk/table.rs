//! What a query reads from.
//!
//! Owns: the same proof as its parent, for FROM. Never: as there.

use sqlparser::ast::*;

use super::Walk;
use super::words::is_reserved;

impl Walk<'_> {
    pub(super) fn table_with_joins(&mut self, table: &TableWithJoins) {
        let TableWithJoins { relation, joins } = table;
        self.table_factor(relation);
        for Join {
            relation,
            global,
            join_operator,
        } in joins
        {
            self.absent(!global);
            self.table_factor(relation);
            match join_operator {
                JoinOperator::Join(constraint)
                | JoinOperator::Inner(constraint)
                | JoinOperator::Left(constraint)
                | JoinOperator::LeftOuter(constraint)
                | JoinOperator::Right(constraint)
                | JoinOperator::RightOuter(constraint)
                | JoinOperator::FullOuter(constraint)
                | JoinOperator::CrossJoin(constraint) => match constraint {
                    JoinConstraint::On(expr) => self.expr(expr),
                    JoinConstraint::Using(_) | JoinConstraint::Natural | JoinConstraint::None => {}
                },
                _ => self.unknown(),
            }
        }
    }

    fn table_factor(&mut self, factor: &TableFactor) {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality: _,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                self.absent(
                    with_hints.is_empty()
                        && version.is_none()
                        && partitions.is_empty()
                        && json_path.is_none()
                        && index_hints.is_empty(),
                );
                // The parser takes ONLY for a relation, and what it is about for its alias.
                self.absent(!is_keyword(name));
                match args {
                    None => self.with_parts(name, Self::relation),
                    Some(TableFunctionArgs { args, settings }) => {
                        self.absent(settings.is_none());
                        self.with_parts(name, Self::function_name);
                        self.function_args(args);
                    }
                }
                self.alias(alias.as_ref());
                self.sample(sample.as_ref());
            }
            TableFactor::Derived {
                lateral: _,
                subquery,
                alias,
                sample,
            } => {
                self.query(subquery);
                self.alias(alias.as_ref());
                self.sample(sample.as_ref());
            }
            TableFactor::Function {
                lateral: _,
                name,
                args,
                with_ordinality: _,
                alias,
            } => {
                self.with_parts(name, Self::function_name);
                self.function_args(args);
                self.alias(alias.as_ref());
            }
            TableFactor::UNNEST {
                alias,
                array_exprs,
                with_offset,
                with_offset_alias,
                with_ordinality: _,
            } => {
                self.absent(!with_offset && with_offset_alias.is_none());
                self.function_name(&["unnest"]);
                self.exprs(array_exprs);
                self.alias(alias.as_ref());
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias,
            } => {
                self.table_with_joins(table_with_joins);
                self.alias(alias.as_ref());
            }
            _ => self.unknown(),
        }
    }

    pub(super) fn alias(&mut self, alias: Option<&TableAlias>) {
        let Some(TableAlias {
            explicit: _,
            name,
            columns,
            at,
        }) = alias
        else {
            return;
        };
        if !columns.is_empty() {
            self.seen.push(name.value.as_str().into());
        }
        self.absent(at.is_none());
        for TableAliasColumnDef { name: _, data_type } in columns {
            if let Some(data_type) = data_type {
                self.data_type(data_type);
            }
        }
    }

    fn sample(&mut self, sample: Option<&TableSampleKind>) {
        let sample = match sample {
            None => return,
            Some(TableSampleKind::BeforeTableAlias(s) | TableSampleKind::AfterTableAlias(s)) => s,
        };
        let TableSample {
            modifier,
            name,
            quantity,
            seed: _,
            bucket,
            offset,
        } = &**sample;
        let method = matches!(
            name,
            Some(TableSampleMethod::Bernoulli | TableSampleMethod::System)
        );
        let modifier = matches!(modifier, TableSampleModifier::TableSample);
        self.absent(method && modifier && bucket.is_none() && offset.is_none());
        if let Some(TableSampleQuantity {
            parenthesized: _,
            value,
            unit,
        }) = quantity
        {
            self.absent(unit.is_none());
            self.expr(value);
        }
    }
}

/// Whether what was taken for a name is a word of the grammar's.
fn is_keyword(name: &ObjectName) -> bool {
    match &*name.0 {
        [ObjectNamePart::Identifier(word)] => {
            word.quote_style.is_none() && is_reserved(&word.value)
        }
        _ => false,
    }
}
