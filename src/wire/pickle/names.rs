//! The opcodes that only deltas may use, and the few names they may mean.

use std::sync::Arc;

use super::error::{OpcodeName, Problem};
use super::machine::{Class, Container, Item, Machine, Shape};
use super::table::Dict;
use super::value::{Opcode, Type, Value};

impl Machine {
    pub fn import(&mut self) -> Result<(), Problem> {
        let (name, module) = (self.pop("STACK_GLOBAL")?, self.pop("STACK_GLOBAL")?);
        let (Item::Ready(Value::Str(name), _), Item::Ready(Value::Str(module), _)) = (name, module)
        else {
            return Err(Problem::Misapplied("STACK_GLOBAL"));
        };
        let class = match (module.as_ref(), name.as_ref()) {
            (b"deepdiff.helper", b"Opcode") => Class::Opcode,
            (b"deepdiff.helper", b"OrderedDictPlus") => Class::OrderedDictPlus,
            (b"builtins", name) if let Some(kind) = Type::from_builtins(name) => {
                return self.push(Value::Type(kind));
            }
            _ => {
                let text = |bytes: &[u8]| {
                    String::from_utf8_lossy(bytes.get(..80).unwrap_or(bytes)).into_owned()
                };
                let full = format!("{}.{}", text(&module), text(&name));
                return Err(Problem::ForbiddenName(full.escape_debug().to_string()));
            }
        };
        self.count()?;
        self.stack.push(Item::Class(class));
        Ok(())
    }

    pub fn reduce(&mut self) -> Result<(), Problem> {
        let (arguments, class) = (self.pop("REDUCE")?, self.pop("REDUCE")?);
        match (class, arguments) {
            (Item::Class(Class::OrderedDictPlus), Item::Ready(Value::Tuple(arguments), _))
                if arguments.is_empty() =>
            {
                self.ordered_dict_plus = true;
                self.open(Container::Dict(Dict::new(), Shape::EMPTY))
            }
            _ => Err(Problem::Forbidden(OpcodeName(b'R'))),
        }
    }

    pub fn new_object(&mut self) -> Result<(), Problem> {
        let (fields, class) = (self.pop("NEWOBJ")?, self.pop("NEWOBJ")?);
        let (Item::Class(Class::Opcode), Item::Ready(Value::Tuple(fields), shape)) =
            (class, fields)
        else {
            return Err(Problem::Forbidden(OpcodeName(0x81)));
        };
        let fields = <[Value; 7]>::try_from(Arc::unwrap_or_clone(fields))
            .map_err(|_| Problem::Misapplied("Opcode"))?;
        self.opcode = true;
        self.count()?;
        self.stack
            .push(Item::Ready(Value::Opcode(Arc::new(Opcode(fields))), shape));
        Ok(())
    }

    pub fn persistent_id(&mut self) -> Result<(), Problem> {
        match self.pop("BINPERSID")? {
            Item::Ready(Value::Str(id), _) if id.as_ref() == b"<<NoneType>>" => {
                self.push(Value::Type(Type::None))
            }
            _ => Err(Problem::Forbidden(OpcodeName(b'Q'))),
        }
    }
}
