/**
 * Replaces `$(NAME)` in `input` by what `lookup` says, in one pass from left to right: values are not expanded again.
 * An unknown name stays as it is written, `$$` is a literal dollar sign, a lone `$` stands for itself.
 */
export function expand(input: string, lookup: (name: string) => string | undefined): string {
  // Behind it nothing is closed: who writes many that are not must not make us look for the end of each.
  const lastEnd = input.lastIndexOf(")");
  let output = "";
  let at = 0;
  for (;;) {
    const dollar = input.indexOf("$", at);
    if (dollar === -1 || dollar === input.length - 1) return output + input.slice(at);
    output += input.slice(at, dollar);
    const next = input[dollar + 1];
    const end = next === "(" && dollar < lastEnd ? input.indexOf(")", dollar + 2) : -1;
    if (next === "$") {
      output += "$";
      at = dollar + 2;
    } else if (end !== -1) {
      const name = input.slice(dollar + 2, end);
      output += lookup(name) ?? `$(${name})`;
      at = end + 1;
    } else {
      output += `$${next}`;
      at = dollar + 2;
    }
  }
}
