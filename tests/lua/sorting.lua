-- Sorting, with Lua functions called back from C.
local state = 1
local function random()
    state = (state * 1103515245 + 12345) % 2147483648
    return state
end
local t = {}
for i = 1, 20000 do t[i] = random() % 100000 end
table.sort(t)
local ordered = true
for i = 2, #t do ordered = ordered and t[i - 1] <= t[i] end
print(ordered, t[1], t[#t // 2], t[#t])
table.sort(t, function(a, b) return a > b end)
print(t[1], t[#t // 2], t[#t])
local words = {}
for w in ("the quick brown fox jumps over the lazy dog"):gmatch("%a+") do words[#words + 1] = w end
table.sort(words, function(a, b) return #a < #b or (#a == #b and a < b) end)
print(table.concat(words, " "))
print(pcall(table.sort, {3, "x", 1}))
