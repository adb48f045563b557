//! The expressions of a query.
//!
//! Owns: the same proof as its parent, for expressions, calls and types. Never: as there.

use sqlparser::ast::*;

use super::Walk;

impl Walk<'_> {
    pub(super) fn exprs<'e>(&mut self, exprs: impl IntoIterator<Item = &'e Expr>) {
        for expr in exprs {
            self.expr(expr);
        }
    }

    fn boxed<'e>(&mut self, exprs: impl IntoIterator<Item = &'e Box<Expr>>) {
        for expr in exprs {
            self.expr(expr);
        }
    }

    pub(super) fn expr(&mut self, mut expr: &Expr) {
        // Chains of operators lean to the left; following them takes no stack.
        loop {
            expr = match expr {
                Expr::BinaryOp { left, op: _, right } => {
                    self.expr(right);
                    left
                }
                Expr::Cast {
                    kind,
                    expr,
                    data_type,
                    format,
                } => {
                    let postgres = matches!(kind, CastKind::Cast | CastKind::DoubleColon);
                    self.absent(postgres && format.is_none());
                    self.data_type(data_type);
                    expr
                }
                Expr::InSubquery {
                    expr,
                    subquery,
                    negated: _,
                } => {
                    self.query(subquery);
                    expr
                }
                Expr::InList {
                    expr,
                    list,
                    negated: _,
                } => {
                    self.exprs(list);
                    expr
                }
                Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => {
                    self.expr(right);
                    left
                }
                Expr::Between {
                    expr,
                    negated: _,
                    low,
                    high,
                } => {
                    self.boxed([low, high]);
                    expr
                }
                Expr::Like {
                    negated: _,
                    any: _,
                    expr,
                    pattern,
                    escape_char,
                }
                | Expr::ILike {
                    negated: _,
                    any: _,
                    expr,
                    pattern,
                    escape_char,
                }
                | Expr::SimilarTo {
                    negated: _,
                    expr,
                    pattern,
                    escape_char,
                } => {
                    self.expr(pattern);
                    self.boxed(escape_char);
                    expr
                }
                Expr::AnyOp {
                    left,
                    compare_op: _,
                    right,
                    is_some: _,
                }
                | Expr::AllOp {
                    left,
                    compare_op: _,
                    right,
                } => {
                    self.expr(right);
                    left
                }
                Expr::AtTimeZone {
                    timestamp,
                    time_zone,
                } => {
                    self.expr(time_zone);
                    timestamp
                }
                Expr::Nested(inner)
                | Expr::UnaryOp { op: _, expr: inner }
                | Expr::Collate {
                    expr: inner,
                    collation: _,
                }
                | Expr::IsFalse(inner)
                | Expr::IsNotFalse(inner)
                | Expr::IsTrue(inner)
                | Expr::IsNotTrue(inner)
                | Expr::IsNull(inner)
                | Expr::IsNotNull(inner)
                | Expr::IsUnknown(inner)
                | Expr::IsNotUnknown(inner)
                | Expr::IsJson {
                    expr: inner,
                    kind: _,
                    unique_keys: _,
                    negated: _,
                }
                | Expr::IsNormalized {
                    expr: inner,
                    form: _,
                    negated: _,
                } => inner,
                _ => break,
            };
        }
        self.branch(expr);
    }

    fn branch(&mut self, expr: &Expr) {
        match expr {
            Expr::Identifier(column) => self.column(column),
            Expr::CompoundIdentifier(parts) => {
                if let Some(column) = parts.last() {
                    self.column(column);
                }
            }
            Expr::Value(_) => {}
            Expr::Function(function) => self.function(function),
            Expr::Subquery(query) => self.query(query),
            Expr::Exists {
                subquery,
                negated: _,
            } => self.query(subquery),
            Expr::Case {
                case_token: _,
                end_token: _,
                operand,
                conditions,
                else_result,
            } => {
                self.boxed(operand);
                for CaseWhen { condition, result } in conditions {
                    self.exprs([condition, result]);
                }
                self.boxed(else_result);
            }
            Expr::CompoundFieldAccess { root, access_chain } => {
                self.expr(root);
                for access in access_chain {
                    self.access(access);
                }
            }
            Expr::Tuple(exprs) => self.exprs(exprs),
            Expr::Array(Array { elem, named: _ }) => self.exprs(elem),
            Expr::GroupingSets(sets) | Expr::Cube(sets) | Expr::Rollup(sets) => {
                self.exprs(sets.iter().flatten());
            }
            Expr::TypedString(TypedString {
                data_type,
                value: _,
                uses_odbc_syntax,
            }) => {
                self.absent(!uses_odbc_syntax);
                self.data_type(data_type);
            }
            Expr::Interval(Interval {
                value,
                leading_field: _,
                leading_precision: _,
                last_field: _,
                fractional_seconds_precision: _,
            }) => self.expr(value),
            Expr::Named { expr, name: _ } => self.expr(expr),
            _ => self.spelled_call(expr),
        }
    }

    /// The calls that the grammar spells with words between their arguments.
    fn spelled_call(&mut self, expr: &Expr) {
        match expr {
            Expr::Extract {
                field: _,
                syntax: _,
                expr,
            } => self.expr(expr),
            Expr::Ceil { expr, field } | Expr::Floor { expr, field } => {
                let plain = matches!(
                    field,
                    CeilFloorKind::DateTimeField(DateTimeField::NoDateTime)
                );
                self.absent(plain);
                self.expr(expr);
            }
            Expr::Position { expr, r#in } => self.boxed([expr, r#in]),
            Expr::Substring {
                expr,
                substring_from,
                substring_for,
                special: _,
                shorthand: _,
            } => {
                self.expr(expr);
                self.boxed(substring_from);
                self.boxed(substring_for);
            }
            Expr::Trim {
                trim_where: _,
                trim_what,
                expr,
                trim_characters,
            } => {
                self.expr(expr);
                self.boxed(trim_what);
                self.exprs(trim_characters.iter().flatten());
            }
            Expr::Overlay {
                expr,
                overlay_what,
                overlay_from,
                overlay_for,
            } => {
                self.boxed([expr, overlay_what, overlay_from]);
                self.boxed(overlay_for);
            }
            _ => return self.unknown(),
        }
        // A user's function of the same name may take the place of some of these.
        let name = match expr {
            Expr::Ceil { .. } => "ceil",
            Expr::Floor { .. } => "floor",
            Expr::Position { .. } => "position",
            Expr::Substring {
                shorthand: true, ..
            } => "substr",
            Expr::Substring { .. } => "substring",
            Expr::Overlay { .. } => "overlay",
            _ => return,
        };
        self.function_name(&[name]);
    }

    fn access(&mut self, access: &AccessExpr) {
        match access {
            // A field, or `.*`. A call would be a method, which PostgreSQL has not.
            AccessExpr::Dot(Expr::Identifier(_)) => {}
            AccessExpr::Dot(_) => self.unknown(),
            AccessExpr::Subscript(Subscript::Index { index }) => self.expr(index),
            AccessExpr::Subscript(Subscript::Slice {
                lower_bound,
                upper_bound,
                stride,
            }) => {
                self.absent(stride.is_none());
                self.exprs(lower_bound);
                self.exprs(upper_bound);
            }
        }
    }

    fn function(&mut self, function: &Function) {
        let Function {
            name,
            uses_odbc_syntax,
            parameters,
            args,
            within_group,
            filter,
            null_treatment: _,
            over,
        } = function;
        self.absent(!uses_odbc_syntax && matches!(parameters, FunctionArguments::None));
        self.with_parts(name, Self::function_name);
        match args {
            FunctionArguments::None => {}
            FunctionArguments::Subquery(query) => self.query(query),
            FunctionArguments::List(FunctionArgumentList {
                duplicate_treatment: _,
                args,
                clauses,
            }) => {
                self.function_args(args);
                for clause in clauses {
                    self.clause(clause);
                }
            }
        }
        self.order_by_exprs(within_group);
        self.boxed(filter);
        match over {
            None | Some(WindowType::NamedWindow(_)) => {}
            Some(WindowType::WindowSpec(spec)) => self.window(spec),
        }
    }

    pub(super) fn function_args(&mut self, args: &[FunctionArg]) {
        for arg in args {
            let arg = match arg {
                FunctionArg::Unnamed(arg) => arg,
                FunctionArg::Named {
                    name: _,
                    arg,
                    operator: _,
                } => arg,
                FunctionArg::ExprNamed {
                    name,
                    arg,
                    operator: _,
                } => {
                    self.expr(name);
                    arg
                }
            };
            match arg {
                FunctionArgExpr::Expr(expr) => self.expr(expr),
                FunctionArgExpr::QualifiedWildcard(_) | FunctionArgExpr::Wildcard => {}
                FunctionArgExpr::WildcardWithOptions(_) => self.unknown(),
            }
        }
    }

    fn clause(&mut self, clause: &FunctionArgumentClause) {
        match clause {
            FunctionArgumentClause::OrderBy(exprs) => self.order_by_exprs(exprs),
            FunctionArgumentClause::IgnoreOrRespectNulls(_)
            | FunctionArgumentClause::JsonNullClause(_) => {}
            FunctionArgumentClause::JsonReturningClause(JsonReturningClause { data_type }) => {
                self.data_type(data_type);
            }
            _ => self.unknown(),
        }
    }

    pub(super) fn window(&mut self, spec: &WindowSpec) {
        let WindowSpec {
            window_name: _,
            partition_by,
            order_by,
            window_frame,
        } = spec;
        self.exprs(partition_by);
        self.order_by_exprs(order_by);
        let Some(WindowFrame {
            units: _,
            start_bound,
            end_bound,
        }) = window_frame
        else {
            return;
        };
        for bound in std::iter::once(start_bound).chain(end_bound) {
            match bound {
                WindowFrameBound::CurrentRow => {}
                WindowFrameBound::Preceding(expr) | WindowFrameBound::Following(expr) => {
                    self.boxed(expr);
                }
            }
        }
    }

    /// A type's name runs nothing; the types that hold expressions are another dialect's.
    pub(super) fn data_type(&mut self, mut data_type: &DataType) {
        while let DataType::Array(
            ArrayElemTypeDef::SquareBracket(element, _) | ArrayElemTypeDef::Qualified(element, _),
        ) = data_type
        {
            data_type = element;
        }
        match data_type {
            DataType::Character(_)
            | DataType::Char(_)
            | DataType::CharacterVarying(_)
            | DataType::CharVarying(_)
            | DataType::Varchar(_)
            | DataType::Nvarchar(_)
            | DataType::Uuid
            | DataType::Numeric(_)
            | DataType::Decimal(_)
            | DataType::Dec(_)
            | DataType::Float(_)
            | DataType::Int2(_)
            | DataType::SmallInt(_)
            | DataType::Int(_)
            | DataType::Int4(_)
            | DataType::Int8(_)
            | DataType::Integer(_)
            | DataType::BigInt(_)
            | DataType::Float4
            | DataType::Real
            | DataType::Float8
            | DataType::Double(_)
            | DataType::DoublePrecision
            | DataType::Bool
            | DataType::Boolean
            | DataType::Date
            | DataType::Time(_, _)
            | DataType::Timestamp(_, _)
            | DataType::Interval {
                fields: _,
                precision: _,
            }
            | DataType::JSON
            | DataType::JSONB
            | DataType::Regclass
            | DataType::Text
            | DataType::Bytea
            | DataType::Bit(_)
            | DataType::BitVarying(_)
            | DataType::VarBit(_)
            | DataType::GeometricType(_)
            | DataType::TsVector
            | DataType::TsQuery => {}
            DataType::Custom(name, modifiers) => {
                if let Some(name) = name.0.last().and_then(ObjectNamePart::as_ident)
                    && !modifiers.is_empty()
                {
                    self.seen.push(name.value.as_str().into());
                }
            }
            _ => self.unknown(),
        }
    }
}
