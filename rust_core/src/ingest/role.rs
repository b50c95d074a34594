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

    /// The role of a name in any of the layouts, in capitals or not; `None` for an unknown name.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.trim();
        ROLE_NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, role)| *role)
    }

    /// Whether a name is of messages in which the assistant calls a tool, and says nothing.
    pub fn is_call(name: &str) -> bool {
        CALL_NAMES.iter().any(|known| known.eq_ignore_ascii_case(name.trim()))
    }
}

/// Every name a role goes by: those of `OpenAI` and Hugging Face, `ShareGPT`'s (`human`, `gpt`,
/// `observation`, `function`), and what exports of chats use (`model`, `chatgpt`, `developer`).
pub const ROLE_NAMES: [(&str, Role); 18] = [
    ("system", Role::System),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
    ("developer", Role::System),
    ("human", Role::User),
    ("prompter", Role::User),
    ("gpt", Role::Assistant),
    ("model", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("bard", Role::Assistant),
    ("bing", Role::Assistant),
    ("claude", Role::Assistant),
    ("bot", Role::Assistant),
    ("observation", Role::Tool),
    ("function", Role::Tool),
    ("tool_response", Role::Tool),
    ("ipython", Role::Tool),
];

/// Names of messages that hold the call of a tool: `ShareGPT`'s and ms-swift's.
const CALL_NAMES: [&str; 4] = ["function_call", "tool_call", "tool_calls", "function-call"];
