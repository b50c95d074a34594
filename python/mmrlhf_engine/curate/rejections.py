"""Why a row of raw input, or one turn of it, is rejected: each reason of `rejected`, explained."""

__all__ = ["REJECTIONS"]

REJECTIONS: dict[str, str] = {
    "broken_record": "the record is no JSON or no UTF-8, or the file is damaged there",
    "empty_prompt": "no question is left without white space and marks of media",
    "malformed_hash": "a picture that the record holds as its hash alone has a value that is none",
    "marks_and_media_differ": "the text has more or fewer marks, such as <image>, than the record "
    "has pictures and videos",
    "missing_media": "a picture or video is not where the record says, or is an address",
    "no_text": "the record has no field in which a question is looked for; `columns` names another",
    "outside_root": "a name of media leads out of the folder of its source",
    "repeated_member": "two members of a tar have one key and one suffix, of which the first was "
    "read; or a key has several texts, of which none was",
    "scattered_members": "members of a tar that have one key are no neighbours",
    "too_many_pixels": "a picture has more pixels than `max_pixels`",
    "too_many_turns": "a conversation has more than 8,192 messages",
    "truncated_media": "a picture ends before it should",
    "unknown_role": "a message is of a speaker that is neither user, assistant, system nor tool",
    "unreadable_media": "a file is no picture or video of a known format, or it is damaged",
    "wrong_type": "a field holds something else than it should, a list for a text say",
}
"""Reason -> what it means; ``detail`` of the row says what was found."""
