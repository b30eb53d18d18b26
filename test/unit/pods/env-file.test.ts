import { describe, expect, test } from "vitest";
import { envFileLineBytesMax, findInEnvFile } from "../../../agent/pods/env-file.ts";

describe("findInEnvFile", () => {
  test.each([
    { name: "plain", text: "KEY='value'", want: "value" },
    { name: "comments and blanks", text: "# c\n\n  KEY='v' # c\n", want: "v" },
    { name: "first match wins", text: "KEY='1'\nKEY='2'", want: "1" },
    { name: "several lines, literal", text: "KEY='a\n  $(B) #\nc'\nX='1'", want: "a\n  $(B) #\nc" },
    { name: "absent", text: "OTHER='1'", want: undefined },
    { name: "empty counts as absent", text: "KEY=''", want: undefined },
    { name: "blank after =", text: "KEY= 'x'", want: undefined },
    { name: "nothing after =", text: "KEY=", want: undefined },
    { name: "tabs before the name", text: "\t KEY='v'", want: "v" },
    { name: "a # inside the quotes", text: "KEY='a#b'", want: "a#b" },
    { name: "double quotes and backslashes are literal", text: `KEY='say "hi"\\n'`, want: 'say "hi"\\n' },
    { name: "an = in the value", text: "KEY='a=b'", want: "a=b" },
    { name: "lines that end as on Windows", text: "A='1'\r\nKEY='v'\r\n", want: "v" },
    { name: "what comes after the match does not matter", text: "KEY='v'\nnonsense", want: "v" },
    { name: "an empty line in a value", text: "KEY='\n\na\n'\nX='1'", want: "\n\na\n" },
    { name: "after a value of several lines", text: "X='a\nb' # c\n\nKEY='v'", want: "v" },
    {
      name: "a line of many characters of several bytes",
      text: `KEY='${"€".repeat(21_000)}'`,
      want: "€".repeat(21_000),
    },
    { name: "an empty file", text: "", want: undefined },
    { name: "names are told apart by case", text: "key='v'", want: undefined },
  ])("$name", ({ text, want }) => expect(findInEnvFile(text, "KEY")).toBe(want));

  test.each([
    ["nonsense", "line 1: a line must have the form"],
    ["\n='1'", "line 2: the name before = is empty"],
    ["KEY ='1'", "blanks before ="],
    ["KEY=value", "single quotes"],
    ["KEY='open", "not closed"],
    ["KEY='a' b", "only a comment"],
    ["KEY='a''b'", "only a comment"],
    ['KEY="a"', "single quotes"],
    ["A='1'\nKEY\t='1'", "line 2: blanks before ="],
    ["OTHER='a\nb\nKEY='1'", "line 3: only a comment"],
    ["A='1\n2'\n\nKEY", "line 4: a line must have the form"],
    ["A='1\n\n", "line 1: the quote is not closed"],
    [`KEY='\n${"€".repeat(22_000)}`, "line 2: the line is longer than 65536 bytes"],
    [`KEY='${"x".repeat(envFileLineBytesMax)}'`, "longer than 65536 bytes"],
  ])("refuses %s", (text, why) => expect(() => findInEnvFile(text, "KEY")).toThrow(why));
});
