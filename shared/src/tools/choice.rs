//! A choice between a few words.

/// Makes an enum whose variants are words on the wire, with one message for whatever is none of them.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$of_variant:meta])* $Variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$of_variant])* $Variant),+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),+];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$Variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = <serde_json::Value as serde::Deserialize>::deserialize(deserializer)?;
                Self::ALL.iter().copied().find(|choice| value.as_str() == Some(choice.as_str())).ok_or_else(|| {
                    let words: Vec<String> = Self::ALL.iter().map(|choice| format!("\"{choice}\"")).collect();
                    let given = $crate::bounded::shown(&value);
                    serde::de::Error::custom(format!("must be one of {}, not {given}", words.join(", ")))
                })
            }
        }

        $crate::text::inline_schema!($name, {"type": "string", "enum": Self::ALL});
    };
}
pub(crate) use choice;
