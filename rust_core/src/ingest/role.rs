//! Names of conversation roles in the field, and the four roles they mean.

/// Who speaks in a message of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
    /// The output of a tool that the assistant called.
    Tool,
}

impl Role {
    /// The name that chat templates use.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of a name, in the spelling of any of the layouts; `None` for an unknown name.
    pub fn parse(name: &str) -> Option<Self> {
        ROLE_NAMES.iter().find(|(known, _)| *known == name).map(|(_, role)| *role)
    }
}

/// Every name a role goes by: those of `OpenAI` and Hugging Face, `ShareGPT`'s (`human`, `gpt`,
/// `observation`, `function`), and what exports of chats use (`model`, `chatgpt`, `developer`).
pub const ROLE_NAMES: [(&str, Role); 11] = [
    ("system", Role::System),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
    ("developer", Role::System),
    ("human", Role::User),
    ("gpt", Role::Assistant),
    ("model", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("observation", Role::Tool),
    ("function", Role::Tool),
];
